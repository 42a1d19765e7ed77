//! Where ports listen.

use super::*;

#[test]
fn listening_beyond_loopback_is_refused_unless_that_is_said_aloud() {
    for address in ["0.0.0.0:8080", "[::]:8080", "10.0.0.1:8080"] {
        let data = ServeFlags { listen: Some(address.into()), ..flags() };
        assert_eq!(Config::parse(None, &no_env, &data).unwrap_err()[0].key, "listen.data");
        let admin = ServeFlags { admin_listen: Some(address.into()), ..flags() };
        assert_eq!(Config::parse(None, &no_env, &admin).unwrap_err()[0].key, "listen.admin");
        let allowed = ServeFlags { insecure_no_auth: true, ..data };
        assert!(Config::parse(None, &no_env, &allowed).is_ok(), "{address}");
        let health = ServeFlags { health_listen: Some("0.0.0.0:8082".into()), ..flags() };
        assert!(Config::parse(None, &no_env, &health).is_ok());
    }
    for address in ["127.0.0.2:1", "[::1]:1", "localhost:1"] {
        let data = ServeFlags { listen: Some(address.into()), ..flags() };
        assert!(Config::parse(None, &no_env, &data).is_ok(), "{address}");
    }
}

#[test]
fn the_container_contract_listens_everywhere_on_sagemakers_port_and_needs_no_store() {
    let none = ServeFlags::default();
    let multi = env(&[("SAGEMAKER_MULTI_MODEL", "true"), ("SAGEMAKER_BIND_TO_PORT", "9000")]);
    let config = Config::parse(None, &multi, &none).unwrap();
    assert!(config.container.contract && config.endpoints.is_empty());
    assert_eq!(config.listen.data, "0.0.0.0:9000".parse().unwrap());
    assert_eq!(config.listen.admin, "127.0.0.1:8081".parse().unwrap());

    let by_flag = ServeFlags { container_contract: true, ..ServeFlags::default() };
    let config = Config::parse(None, &no_env, &by_flag).unwrap();
    assert_eq!(config.listen.data, "0.0.0.0:8080".parse().unwrap());

    let with_listen = ServeFlags { listen: Some("127.0.0.1:0".into()), ..by_flag.clone() };
    let config = Config::parse(None, &multi, &with_listen).unwrap();
    assert_eq!(config.listen.data, "127.0.0.1:0".parse().unwrap());

    let wide_admin = ServeFlags { admin_listen: Some("0.0.0.0:1".into()), ..by_flag };
    assert_eq!(Config::parse(None, &no_env, &wide_admin).unwrap_err()[0].key, "listen.admin");
}

#[test]
fn ports_that_collide_are_refused_but_two_zeros_are_two_ports() {
    let at = |data: &str, admin: &str, health: &str| ServeFlags {
        listen: Some(data.into()),
        admin_listen: Some(admin.into()),
        health_listen: Some(health.into()),
        ..flags()
    };
    let keys = |flags: &ServeFlags| match Config::parse(None, &no_env, flags) {
        Ok(_) => Vec::new(),
        Err(found) => found.into_iter().map(|fault| fault.key).collect::<Vec<_>>(),
    };
    assert_eq!(keys(&at("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2")), ["listen.admin"]);
    assert_eq!(keys(&at("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:1")), ["listen.health"]);
    assert!(keys(&at("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")).is_empty());
}
