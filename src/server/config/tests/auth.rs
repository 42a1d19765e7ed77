//! Who may call, and how connections are encrypted.

use roundhouse_tenancy::{Jwks, Named};

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
    let oidc = &config.auth.oidc[0];
    let Named::Listed(listed) = &oidc.tenants else { panic!("{oidc:?}") };
    assert_eq!(listed["a=b"].as_str(), "acme");
    assert_eq!(oidc.claim, "tenant");
    assert_eq!(auth("anonymous = false"), ["auth.anonymous"]);
    assert_eq!(auth("oidc_issuer = \"i\""), ["auth.oidc_audience"]);
    assert_eq!(auth("oidc_issuer = \"i\"\noidc_audience = \"a\""), ["auth.oidc_tenants"]);
    let any = "oidc_issuer = \"i\"\noidc_audience = \"a\"\noidc_tenants = \"*\"";
    assert_eq!(auth(any), ["auth.oidc_jwks"]);
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
    let oidc = "oidc_issuer = \"i\"\noidc_audience = \"a\"\noidc_tenants = \"*\"\n";
    for jwks in ["http://issuer.example/keys", "ftp://x/y", ""] {
        let written = format!("{oidc}oidc_jwks = \"{jwks}\"");
        assert!(auth(&written).contains(&"auth.oidc_jwks".to_owned()), "{jwks}");
    }
    assert_eq!(auth("oidc_tenants = \"a=b/c\""), ["auth.oidc_tenants"]);
    assert_eq!(auth("oidc_tenants = \"a=b a=c\""), ["auth.oidc_tenants"]);
    assert_eq!(auth("oidc_tenants = \" \""), ["auth.oidc_tenants"]);
}

#[test]
fn there_may_be_several_issuers_and_their_keys_are_found() {
    let read = |text: &str| Config::parse(Some(&format!("version = 1\n{text}")), &no_env, &flags());
    let flat = "[auth]\noidc_issuer = \"https://a\"\noidc_audience = \"x\"\noidc_tenants = \"*\"\n";
    let more = "[[issuer]]\nissuer = \"http://127.0.0.1:9/b\"\naudience = \"x\"\nleeway = \"5s\"\n\
                tenants = \"g=acme\"\n";
    let config = read(&format!("{flat}{more}")).unwrap();
    let [first, second] = &config.auth.oidc[..] else { panic!("{:?}", config.auth.oidc) };
    assert_eq!(first.jwks, Jwks::Discovered("https://a".to_owned()));
    let Named::Listed(listed) = &second.tenants else { panic!("{second:?}") };
    assert_eq!((second.leeway.as_secs(), listed["g"].as_str()), (5, "acme"));
    assert_eq!(first.tenants, Named::Any);
    assert!(!config.auth.anonymous);
    let faults = |text: &str| fault_keys(text);
    assert_eq!(faults(&format!("{more}{more}")), ["issuer[1].issuer"]);
    assert_eq!(faults("[issuer]\nissuer = \"a\""), ["issuer"]);
    assert_eq!(faults("[[issuer]]\nissuer = \"https://a\""), ["issuer[0].audience"]);
    let silent = fault_keys("[[issuer]]\nissuer = \"https://a\"\naudience = \"x\"");
    assert_eq!(silent, ["issuer[0].tenants"], "nobody may name every tenant unsaid");
    let plain = "[[issuer]]\nissuer = \"http://far.example\"\naudience = \"a\"\ntenants = \"*\"";
    assert_eq!(faults(plain), ["issuer[0].jwks"]);
    for (key, value) in
        [("leeway", "\"11m\""), ("tenants", "\"a\""), ("audience", "7"), ("jwk", "\"a\"")]
    {
        let rest = "issuer = \"https://a\"\naudience = \"x\"\ntenants = \"*\"\n";
        let rest = rest.lines().filter(|line| !line.starts_with(&format!("{key} ")));
        let rest: Vec<&str> = rest.collect();
        let with = format!("[[issuer]]\n{}\n{key} = {value}", rest.join("\n"));
        assert_eq!(faults(&with), [format!("issuer[0].{key}")]);
    }
}

#[test]
fn who_signed_with_awss_credentials_is_asked_of_listed_addresses() {
    let (id, whose) = ("aws_server_id = \"house-1\"\n", "aws_tenants = \"123456789012=acme\"\n");
    let sts = "aws_sts = \"https://sts.eu-central-1.amazonaws.com/ http://127.0.0.1:9\"\n";
    let text = format!("version = 1\n[auth]\n{sts}{id}{whose}");
    let config = Config::parse(Some(&text), &no_env, &flags()).unwrap();
    let iam = config.auth.iam.as_ref().unwrap();
    assert_eq!(iam.sts, ["https://sts.eu-central-1.amazonaws.com", "http://127.0.0.1:9"]);
    assert!(config.auth.asks() && !config.auth.anonymous);
    let auth = |text: String| fault_keys(&format!("[auth]\n{text}"));
    assert_eq!(auth(sts.to_owned()), ["auth.aws_server_id", "auth.aws_tenants"]);
    for wrong in ["http://sts.amazonaws.com", "https://sts/x", "https://a@b", "sts.amazonaws.com"] {
        let keys = auth(format!("aws_sts = \"{wrong}\"\n{id}{whose}"));
        assert!(keys.contains(&"auth.aws_sts".to_owned()), "{wrong}");
    }
    for wrong in [
        "acme",
        "1234=acme",
        "arn:aws:iam::123456789012:role/*=acme",
        "123456789012=a/b",
        "arn:aws:iam::*:user/x=acme",
        "123456789012=a 123456789012=b",
        "arn:aws:iam::123456789012:user/a*=acme",
    ] {
        let keys = auth(format!("{sts}{id}aws_tenants = \"{wrong}\""));
        assert!(keys.contains(&"auth.aws_tenants".to_owned()), "{wrong}");
    }
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
