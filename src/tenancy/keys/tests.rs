use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn acme() -> TenantName {
    "acme".parse().unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    (folder, path)
}

#[test]
fn a_minted_key_lets_its_tenant_in_until_it_is_over_or_revoked() {
    let (_folder, path) = folder();
    let lifetime = Duration::from_secs(60);
    let minted = KeyFile::create(&path, Wanted::Bearer(acme()), Some(lifetime)).unwrap();
    let file = KeyFile::open(&path).unwrap();
    let (key, from) = (minted.secret.reveal(), minted.record.created);
    let keys = file.current();
    let held = keys.bearer(key, from + 59).unwrap();
    assert_eq!(
        (held.tenant.as_ref(), held.id.as_ref()),
        (Some(&acme()), minted.record.id.as_str())
    );
    assert_eq!(keys.bearer(key, from + 60).err(), Some(Denied::Expired));
    KeyFile::revoke(&path, &minted.record.id).unwrap();
    assert!(file.refresh().unwrap());
    assert_eq!(file.current().bearer(key, from).err(), Some(Denied::Unknown));
    assert!(!file.refresh().unwrap(), "it has not changed since");
}

#[test]
fn no_other_key_lets_anybody_in() {
    let (_folder, path) = folder();
    let minted = KeyFile::create(&path, Wanted::Bearer(acme()), None).unwrap();
    let other = KeyFile::create(&path, Wanted::Bearer("evil".parse().unwrap()), None).unwrap();
    let pair = KeyFile::create(&path, Wanted::Sigv4(acme()), None).unwrap();
    let keys = KeyFile::open(&path).unwrap().current();
    let key = minted.secret.reveal();
    let (_, others) = other.secret.reveal().rsplit_once('-').unwrap();
    let mixed = format!("rh-{}-{others}", minted.record.id);
    let cut = &key[..key.len() - 1];
    let longer = format!("{key}a");
    let of_pair = format!("rh-{}-{}", pair.record.id, pair.secret.reveal());
    for wrong in ["", "rh-", "rh--", cut, &longer, &mixed, &of_pair, &key[3..], "sk-1234"] {
        assert_eq!(keys.bearer(wrong, 0).err(), Some(Denied::Unknown), "{wrong}");
    }
}

#[test]
fn the_files_hold_no_secret_and_are_their_owners() {
    let (_folder, path) = folder();
    let minted = [
        KeyFile::create(&path, Wanted::Bearer(acme()), None).unwrap(),
        KeyFile::create(&path, Wanted::Sigv4(acme()), None).unwrap(),
        KeyFile::create(&path, Wanted::Operator, None).unwrap(),
    ];
    let master = file::master_path(&path);
    for (file, mode) in [(&path, 0o600), (&master, 0o600)] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, mode);
    }
    let text = fs::read_to_string(&path).unwrap() + &fs::read_to_string(&master).unwrap();
    for key in &minted {
        let (_, secret) = key.secret.reveal().rsplit_once('-').unwrap_or(("", key.secret.reveal()));
        assert!(!text.contains(secret));
        assert!(!format!("{key:?}").contains(secret), "printed");
    }
    let kinds: Vec<_> = KeyFile::list(&path).unwrap().iter().map(KeyRecord::kind).collect();
    assert_eq!(kinds, [KeyKind::Bearer, KeyKind::Sigv4, KeyKind::Operator]);
}

#[test]
fn files_that_others_could_use_are_refused() {
    let (_folder, path) = folder();
    KeyFile::create(&path, Wanted::Sigv4(acme()), None).unwrap();
    let master = file::master_path(&path);
    for (file, mode, part) in [
        (&path, 0o620, "may be written by others (mode 620): chmod 600"),
        (&path, 0o602, "may be written by others (mode 602): chmod 600"),
        (&master, 0o604, "may be used by others (mode 604): chmod 600"),
        (&master, 0o640, "may be used by others (mode 640): chmod 600"),
        (&master, 0o660, "may be used by others (mode 660): chmod 600"),
    ] {
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
        let told = KeyFile::open(&path).unwrap_err().to_string();
        assert!(told.contains(part), "{told}");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::remove_file(&master).unwrap();
    assert!(matches!(KeyFile::open(&path), Err(Error::NoMaster { .. })));
}

#[test]
fn what_is_in_force_stays_where_the_file_is_broken() {
    let (_folder, path) = folder();
    let minted = KeyFile::create(&path, Wanted::Bearer(acme()), None).unwrap();
    let file = KeyFile::open(&path).unwrap();
    for broken in ["", "{", r#"{"version":2,"keys":[]}"#, r#"{"version":1,"keys":[],"more":1}"#] {
        fs::write(&path, broken).unwrap();
        assert!(matches!(file.refresh(), Err(Error::Malformed { .. })), "{broken}");
        assert!(!file.refresh().unwrap(), "it is told once");
        assert!(file.current().bearer(minted.secret.reveal(), 0).is_ok(), "{broken}");
    }
    fs::write(&path, r#"{"version":1,"keys":[]}"#).unwrap();
    assert!(file.refresh().unwrap());
    assert!(file.current().bearer(minted.secret.reveal(), 0).is_err());
}

#[test]
fn a_revocation_holds_though_its_first_reading_failed() {
    let (_folder, path) = folder();
    let minted = KeyFile::create(&path, Wanted::Bearer(acme()), None).unwrap();
    let file = KeyFile::open(&path).unwrap();
    let is_in_force = || file.current().bearer(minted.secret.reveal(), 0).is_ok();
    KeyFile::revoke(&path, &minted.record.id).unwrap();
    let fault = |path: &Path| {
        let source = std::io::Error::other("the disk is away");
        Err(Error::Io { action: "read", path: path.to_owned(), source })
    };
    assert!(file.refresh_by(fault).is_err());
    assert!(!file.refresh_by(fault).unwrap(), "it is told once");
    assert!(is_in_force());
    assert!(file.refresh().unwrap());
    assert!(!is_in_force());
}

#[test]
fn a_revocation_holds_though_the_file_was_refused_between() {
    let (_folder, path) = folder();
    let minted = KeyFile::create(&path, Wanted::Bearer(acme()), None).unwrap();
    let file = KeyFile::open(&path).unwrap();
    let chmod = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    KeyFile::revoke(&path, &minted.record.id).unwrap();
    chmod(0o666);
    assert!(matches!(file.refresh(), Err(Error::Exposed { .. })));
    chmod(0o600);
    assert!(file.refresh().unwrap());
    assert!(file.current().bearer(minted.secret.reveal(), 0).is_err());
}

#[test]
fn whoever_comes_without_a_credential_has_no_keys() {
    let (_folder, path) = folder();
    let anonymous = || "anonymous".parse().unwrap();
    for wanted in [Wanted::Bearer(anonymous()), Wanted::Sigv4(anonymous())] {
        let refused = KeyFile::create(&path, wanted, None);
        assert!(matches!(refused, Err(Error::Keyless(_))));
    }
    assert!(!path.exists());
}

#[test]
fn keys_that_are_minted_at_once_are_all_kept() {
    let (_folder, path) = folder();
    let made: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                KeyFile::create(&path, Wanted::Sigv4(acme()), None).unwrap().record.id
            })
        })
        .collect();
    let made: Vec<String> = made.into_iter().map(|thread| thread.join().unwrap()).collect();
    let listed: Vec<String> = KeyFile::list(&path).unwrap().into_iter().map(|it| it.id).collect();
    assert_eq!(listed.len(), 8);
    assert!(made.iter().all(|id| listed.contains(id)));
}
