//! What requests at an endpoint can name beside targets: `target`, `[[endpoint.component]]` and
//! `[[endpoint.variant]]`.

use std::collections::BTreeMap;

use roundhouse_gateway::{Naming, Serves, Variant};
use roundhouse_types::TargetName;

use super::Fault;
use super::keys::{self, COMPONENT_KEYS, VARIANT_KEYS};

/// Bytes of a name of a variant or component, as SageMaker has it.
const NAME_MAX: usize = 63;
/// Variants of an endpoint, as SageMaker has it.
const VARIANTS_MAX: usize = 10;

/// Reads what an `[[endpoint]]` says of it.
pub(super) fn read(entry: &toml::Table, at: &str) -> (Naming, Vec<Fault>) {
    let mut reader = Reader { faults: Vec::new() };
    let components = reader.components(entry, at);
    let variants = reader.variants(entry, at);
    let target = entry.get("target").and_then(|_| reader.target(entry, "target", at));
    let of_variants = variants.is_some();
    if of_variants && entry.contains_key("target") {
        reader.fault(format!("{at}.target"), "stands beside variants, which say it themselves");
    }
    let naming = match (variants, target) {
        (Some(variants), _) if !variants.is_empty() => Naming { variants, ..Naming::default() },
        (_, Some(target)) => Naming::of(Serves::One(target)),
        _ => Naming::default(),
    };
    (Naming { components, ..naming }, reader.faults)
}

struct Reader {
    faults: Vec<Fault>,
}

impl Reader {
    fn components(&mut self, entry: &toml::Table, at: &str) -> BTreeMap<String, TargetName> {
        let mut components = BTreeMap::new();
        for (at, entry) in self.tables(entry, "component", at) {
            self.faults.extend(keys::unknown_in(entry, COMPONENT_KEYS, &at));
            let name = self.name(entry, &at);
            let target = self.target(entry, "target", &at);
            let (Some(name), Some(target)) = (name, target) else { continue };
            if components.insert(name, target).is_some() {
                self.fault(format!("{at}.name"), "is the name of another component");
            }
        }
        components
    }

    /// `None` where there are none.
    fn variants(&mut self, entry: &toml::Table, at: &str) -> Option<Vec<Variant>> {
        entry.get("variant")?;
        let key = format!("{at}.variant");
        let tables = self.tables(entry, "variant", at);
        if tables.len() > VARIANTS_MAX {
            let message = format!("has {} entries, {VARIANTS_MAX} are the most", tables.len());
            self.fault(&key, message);
        }
        let mut variants: Vec<Variant> = Vec::new();
        for (at, entry) in tables {
            self.faults.extend(keys::unknown_in(entry, VARIANT_KEYS, &at));
            let name = self.name(entry, &at);
            let weight = self.weight(entry, &at);
            let serves = self.serves(entry, &at);
            let (Some(name), Some(serves)) = (name, serves) else { continue };
            if variants.iter().any(|it| *it.name == *name) {
                self.fault(format!("{at}.name"), "is the name of another variant");
            }
            variants.push(Variant { name: name.into(), weight, serves });
        }
        let of_one = |it: &Variant| matches!(it.serves, Serves::One(_));
        if variants.iter().any(of_one) && !variants.iter().all(of_one) {
            self.fault(key, "either all have a target, or all have a prefix");
        }
        Some(variants)
    }

    fn serves(&mut self, entry: &toml::Table, at: &str) -> Option<Serves> {
        match (entry.contains_key("target"), entry.contains_key("prefix")) {
            (true, false) => self.target(entry, "target", at).map(Serves::One),
            (false, true) => self.target(entry, "prefix", at).map(Serves::Below),
            (true, true) => {
                self.fault(format!("{at}.prefix"), "stands beside target: write one of them");
                None
            }
            (false, false) => {
                let message = "is missing: what the variant answers by, or prefix, the folder of \
                               the targets that requests name";
                self.fault(format!("{at}.target"), message);
                None
            }
        }
    }

    fn weight(&mut self, entry: &toml::Table, at: &str) -> f64 {
        let Some(value) = entry.get("weight") else { return 1.0 };
        let number = value.as_float().or_else(|| value.as_integer().map(super::tenants::whole));
        number.filter(|number| (0.001..=1000.0).contains(number)).unwrap_or_else(|| {
            let expected =
                "expected a number, 0.001 to 1000; leave out a variant that gets nothing";
            self.fault(format!("{at}.weight"), expected);
            1.0
        })
    }

    fn name(&mut self, entry: &toml::Table, at: &str) -> Option<String> {
        let name = match entry.get("name") {
            None => {
                self.fault(format!("{at}.name"), "is missing");
                return None;
            }
            Some(name) => name.as_str().unwrap_or_default(),
        };
        let inner = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let ends = !name.starts_with('-') && !name.ends_with('-');
        if name.is_empty() || name.len() > NAME_MAX || !inner || !ends {
            let expected = format!("expected 1 to {NAME_MAX} letters, digits and inner hyphens");
            self.fault(format!("{at}.name"), expected);
            return None;
        }
        Some(name.to_owned())
    }

    fn target(&mut self, entry: &toml::Table, key: &str, at: &str) -> Option<TargetName> {
        let why = match entry.get(key).map(|value| value.as_str().map(str::parse::<TargetName>)) {
            Some(Some(Ok(target))) => return Some(target),
            Some(Some(Err(why))) => format!("is not a target: {why}"),
            Some(None) => "expected a target's name in quotes".into(),
            None => "is missing".into(),
        };
        self.fault(format!("{at}.{key}"), why);
        None
    }

    fn tables<'a>(
        &mut self,
        entry: &'a toml::Table,
        key: &str,
        at: &str,
    ) -> Vec<(String, &'a toml::Table)> {
        let Some(value) = entry.get(key) else { return Vec::new() };
        let at = format!("{at}.{key}");
        let tables: Option<Vec<&toml::Table>> =
            value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
        match tables {
            Some(tables) => {
                let named = |(index, table)| (format!("{at}[{index}]"), table);
                tables.into_iter().enumerate().map(named).collect()
            }
            None => {
                let message = format!("is a list: write [[endpoint.{key}]] and its keys below");
                self.fault(at, message);
                Vec::new()
            }
        }
    }

    fn fault(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::new(key, message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Naming, Vec<String>) {
        let (naming, faults) = read(&text.parse().unwrap(), "endpoint[0]");
        (naming, faults.into_iter().map(|fault| fault.key).collect())
    }

    #[test]
    fn an_endpoint_may_have_a_target_components_and_variants() {
        let (naming, faults) = parsed("target = \"acme/chat/\"");
        assert_eq!(naming, Naming::of(Serves::One("acme/chat".parse().unwrap())));
        assert!(faults.is_empty());
        let text = "[[component]]\nname = \"ic-1\"\ntarget = \"acme/lora\"\n\
                    [[variant]]\nname = \"blue\"\nweight = 3\nprefix = \"blue/\"\n\
                    [[variant]]\nname = \"green\"\nprefix = \"green\"";
        let (naming, faults) = parsed(text);
        assert!(faults.is_empty() && naming.is_multi_model(), "{faults:?}");
        assert_eq!(naming.components["ic-1"].as_str(), "acme/lora");
        let [blue, green] = naming.variants.as_slice() else { panic!("{naming:?}") };
        assert_eq!(blue.serves, Serves::Below("blue".parse().unwrap()));
        assert_eq!((blue.weight, green.weight), (3.0, 1.0));
        assert_eq!(parsed("").0, Naming::default());
    }

    #[test]
    fn each_fault_is_told_with_its_key() {
        let blue = "[[variant]]\nname = \"blue\"\n";
        let cases = [
            ("target = 7".to_owned(), "target"),
            ("component = 1".to_owned(), "component"),
            ("[[component]]\ntarget = \"a\"".to_owned(), "component[0].name"),
            ("[[component]]\nname = \"a_b\"\ntarget = \"a\"".to_owned(), "component[0].name"),
            ("[[component]]\nname = \"a\"\ntarget = \"../a\"".to_owned(), "component[0].target"),
            (blue.to_owned(), "variant[0].target"),
            (format!("{blue}target = \"a\"\nprefix = \"b\""), "variant[0].prefix"),
            (format!("{blue}target = \"a\"\nweight = 0"), "variant[0].weight"),
            (format!("{blue}target = \"a\"\nwieght = 1"), "variant[0].wieght"),
            (format!("{blue}target = \"a\"\n{blue}target = \"b\""), "variant[1].name"),
            (format!("target = \"a\"\n{blue}target = \"a\""), "target"),
            (format!("{blue}target = \"a\"\n[[variant]]\nname = \"c\"\nprefix = \"b\""), "variant"),
        ];
        for (text, key) in cases {
            let (_, faults) = parsed(&text);
            assert_eq!(faults, [format!("endpoint[0].{key}")], "{text}");
        }
    }
}
