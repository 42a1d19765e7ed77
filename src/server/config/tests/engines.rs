//! Engines beside the devices that they are to run on.

use super::*;

fn with(devices: &str, engine: &str) -> String {
    format!(
        "version = 1\n[[endpoint]]\nname = \"a\"\n[[endpoint.engine]]\ntarget = \"x/*\"\n\
         command = [\"serve\", \"{{port}}\"]\n{engine}\n\
         [[endpoint.mount]]\nuri = \"s3://bucket/\"\n{devices}"
    )
}

#[test]
fn engines_fit_a_device_and_sleep_where_one_has_a_memory_of_its_own() {
    let cpu = "[[device]]\nid = \"cpu\"\nbudget = \"2GiB\"\n";
    let other = "[[device]]\nid = \"simulated:0\"\nbudget = \"4GiB\"\n";
    let both = format!("{cpu}{other}");
    let of = |key: &str| vec![format!("endpoint[0].engine[0].{key}")];
    for (devices, engine, faults) in [
        (cpu, "memory = \"2GiB\"", Vec::new()),
        (cpu, "memory = \"3GiB\"", of("memory")),
        (&*both, "memory = \"3GiB\"", Vec::new()),
        ("", "memory = \"3000GiB\"", Vec::new()),
        (cpu, "memory = \"1GiB\"\nsleep = 1", of("sleep")),
        (&*both, "memory = \"1GiB\"\nsleep = 2", Vec::new()),
    ] {
        let text = with(devices, engine);
        let found = Config::parse(Some(&text), &no_env, &ServeFlags::default());
        let found = found.err().unwrap_or_default().into_iter().map(|fault| fault.key);
        assert_eq!(found.collect::<Vec<_>>(), faults, "{text}");
    }
}
