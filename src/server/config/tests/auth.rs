//! Who may call, and how connections are encrypted.

use super::*;

#[test]
fn who_may_call_is_read_and_its_faults_are_named() {
    let auth = |keys: &str| fault_keys(&format!("[auth]\n{keys}\n"));
    let text = "version = 1\n[listen]\ndata = \"0.0.0.0:1\"\nadmin = \"0.0.0.0:2\"\n[auth]\nkeys = \"k\"\n\
                proxy_networks = \"10.0.0.0/8 ::1\"\noidc_issuer = \"i\"\noidc_audience = \"a\"\n\
                oidc_jwks = \"https://i/keys\"\noidc_tenants = \"a=b=acme c=umbrella\"\n";
    let config = Config::parse(Some(text), &no_env, &flags()).unwrap();
    assert!(!config.auth.anonymous && config.auth.asks());
    assert_eq!(config.auth.proxy.unwrap().networks.len(), 2);
    let oidc = config.auth.oidc.unwrap();
    assert_eq!(oidc.tenants["a=b"].as_str(), "acme");
    assert_eq!(oidc.claim, "tenant");
    assert_eq!(auth("anonymous = false"), ["auth.anonymous"]);
    assert_eq!(auth("oidc_issuer = \"i\""), ["auth.oidc_audience", "auth.oidc_jwks"]);
    for networks in ["0.0.0.0/0", "::/0", "10.0.0.0/33", "proxy.example"] {
        let written = format!("proxy_networks = \"{networks}\"");
        assert_eq!(auth(&written), ["auth.proxy_networks"], "{networks}");
    }
    for header in ["", "a b", "Authorization", "host"] {
        assert_eq!(
            auth(&format!("proxy_header = \"{header}\"")),
            ["auth.proxy_header"],
            "{header}"
        );
    }
    let oidc = "oidc_issuer = \"i\"\noidc_audience = \"a\"\n";
    for jwks in ["http://issuer.example/keys", "ftp://x/y", ""] {
        let written = format!("{oidc}oidc_jwks = \"{jwks}\"");
        assert!(auth(&written).contains(&"auth.oidc_jwks".to_owned()), "{jwks}");
    }
    assert_eq!(auth("oidc_tenants = \"a=b/c\""), ["auth.oidc_tenants"]);
    assert_eq!(auth("oidc_tenants = \"a=b a=c\""), ["auth.oidc_tenants"]);
}

#[test]
fn where_callers_are_asked_they_may_come_from_afar() {
    let at = |listen: &str, auth: &str| {
        let text = format!("version = 1\n[listen]\n{listen}\n[auth]\n{auth}\n");
        let read = Config::parse(Some(&text), &no_env, &flags());
        read.map(|_| ()).map_err(|faults| faults.into_iter().map(|it| it.key).collect::<Vec<_>>())
    };
    let (data, admin) = ("data = \"0.0.0.0:1\"", "admin = \"0.0.0.0:2\"");
    let proxy = "proxy_networks = \"10.0.0.1\"";
    assert_eq!(at(data, "keys = \"k\""), Ok(()));
    assert_eq!(at(data, proxy), Ok(()));
    assert_eq!(at(admin, "keys = \"k\""), Ok(()));
    // No proxy speaks for operators.
    assert_eq!(at(admin, proxy), Err(vec!["listen.admin".to_owned()]));
    assert_eq!(at(data, "keys = \"k\"\nanonymous = true"), Err(vec!["listen.data".to_owned()]));
    let contract = ServeFlags { container_contract: true, keys: Some("k".into()), ..flags() };
    let faults = Config::parse(None, &no_env, &contract).unwrap_err();
    assert_eq!(faults[0].key, "auth.anonymous");
}

#[test]
fn certificates_come_with_their_keys() {
    let tls = |keys: &str| fault_keys(&format!("[tls]\n{keys}\n"));
    assert_eq!(tls("certificate = \"c\""), ["tls.key"]);
    assert_eq!(tls("admin_key = \"k\""), ["tls.admin_certificate"]);
    assert_eq!(tls("client_ca = \"c\""), ["tls.client_ca"]);
    assert_eq!(tls("client_name = \"x\""), ["tls.client_name"]);
    let text = "version = 1\n[tls]\ncertificate = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\nclient_name = \"cn\"";
    let config = Config::parse(Some(text), &no_env, &flags()).unwrap();
    assert_eq!(config.tls.data.unwrap().client_name, ClientName::Cn);
    assert!(config.auth.certificates && !config.auth.anonymous);
}

#[test]
fn the_admin_ports_names_are_names() {
    let hosts = |text: &str| fault_keys(&format!("[listen]\nadmin_hosts = \"{text}\""));
    for text in ["a:8081", "http://a", "*", "a/b"] {
        assert_eq!(hosts(text), ["listen.admin_hosts"], "{text}");
    }
    let text = "version = 1\n[listen]\nadmin_hosts = \"House.Example b-2\"";
    let config = Config::parse(Some(text), &no_env, &flags()).unwrap();
    assert_eq!(config.listen.admin_hosts, ["house.example", "b-2"]);
}

#[test]
fn a_server_that_runs_is_not_opened_by_other_settings() {
    let read = |text: &str| {
        let text = format!("version = 1\n{text}");
        Config::parse(Some(&text), &no_env, &flags()).unwrap()
    };
    let (keys, lax) = ("[auth]\nkeys = \"k\"\n", "[auth]\nkeys = \"k\"\nanonymous = true\n");
    let afar = |auth: &str| read(&format!("[listen]\ndata = \"0.0.0.0:1\"\n{auth}"));
    let other = "[auth]\nproxy_networks = \"10.0.0.0/8\"\n";
    for booted in [read(keys), afar(keys)] {
        for opening in [read(""), read(lax)] {
            let fault = booted.check_stays_shut(&opening).unwrap_err();
            assert_eq!(fault.key, "auth");
            assert!(fault.message.contains("restart"), "{fault}");
        }
        assert!(booted.check_stays_shut(&read(other)).is_ok());
    }
    let open = read("");
    for new in [read(keys), read(lax), read("")] {
        assert!(open.check_stays_shut(&new).is_ok(), "it asks nobody, and is near");
    }
    assert!(read(lax).check_stays_shut(&read(lax)).is_ok());
    assert!(read(lax).check_stays_shut(&read("")).is_err());
    let meant = read("[listen]\ndata = \"0.0.0.0:1\"\ninsecure_no_auth = true\n");
    assert!(meant.check_stays_shut(&read("")).is_ok());
}
