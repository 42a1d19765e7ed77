//! Whom a request asks: a target model, or an adapter that it names beside or instead of one.

use axum::extract::Query;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use roundhouse_types::{ModelId, TargetModel};

use crate::error::Error;
use crate::fields::{Fields, strings};

/// Names an adapter; goes before what a body says. SageMaker sends it to containers.
pub(crate) const ADAPTER: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-adapter-identifier");
/// Different adapters that one request may name.
pub(crate) const ADAPTERS_MAX: usize = 64;
/// Characters of a name that a message repeats.
const SHOWN: usize = 100;
/// Names of a list that a message repeats.
const TOLD: usize = 4;
/// What names an adapter where no field of the body does.
const HEADER: &str = "the adapter header";

/// The model that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Aim {
    pub(crate) model: ModelId,
    /// What it must be an adapter of, where the request names that as well.
    pub(crate) base: Option<ModelId>,
    /// The field of the body that names the adapter, where one does.
    pub(crate) field: Option<&'static str>,
    /// The adapter was named already: what the body says of adapters does not count.
    by_header: bool,
    /// The container contract's: the platform is the door, and has decided who may ask.
    pub(crate) of_platform: bool,
}

impl Aim {
    /// A target model.
    pub(crate) fn at(model: ModelId) -> Self {
        Self { model, base: None, field: None, by_header: false, of_platform: false }
    }

    /// The adapter that a header names, of a model that is named too or of its own.
    pub(crate) fn by_header(adapter: ModelId, base: Option<ModelId>) -> Self {
        Self { model: adapter, base, field: None, by_header: true, of_platform: false }
    }

    /// The same, of a model that the platform loaded.
    pub(crate) fn of_platform(self) -> Self {
        Self { of_platform: true, ..self }
    }

    /// An adapter of this model that the body names: a target of the same endpoint.
    ///
    /// # Errors
    /// `Name` for an illegal name.
    pub(crate) fn adapter(&self, field: &'static str, name: &str) -> Result<Self, Error> {
        let target = TargetModel::new(name).check();
        let target = target.map_err(|reason| Error::name(field, &reason))?;
        let model = ModelId { endpoint: self.model.endpoint.clone(), target };
        let (base, of_platform) = (Some(self.model.clone()), self.of_platform);
        Ok(Self { model, base, field: Some(field), by_header: false, of_platform })
    }

    /// The field by which the body names another adapter than the header that goes before it.
    pub(crate) fn overrules(&self, adapters: &Adapters) -> Option<&'static str> {
        let own = Adapters::one(HEADER, self.model.target.as_str().to_owned());
        (self.by_header && !own.agrees(adapters)).then(|| adapters.field())
    }

    /// What of the body's adapters counts.
    pub(crate) fn heeds(&self, adapters: Adapters) -> Adapters {
        if self.by_header { Adapters::None } else { adapters }
    }
}

/// What the adapter header says, if it is there; empty counts as absent.
///
/// # Errors
/// `InvalidRequest` where it is there twice, or no target can have the name.
pub(crate) fn header(headers: &HeaderMap) -> Result<Option<TargetModel>, Error> {
    let mut values = headers.get_all(&ADAPTER).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Error::request(format!("the header {ADAPTER} is there more than once")));
    }
    let Some(value) = first.filter(|value| !value.is_empty()) else { return Ok(None) };
    let named = TargetModel::new(value.as_bytes());
    named
        .check()
        .map_err(|reason| Error::request(format!("the adapter is not a legal name: {reason}")))?;
    Ok(Some(named))
}

/// Has DJL's `?adapter=` say what the header would, where that says nothing.
///
/// # Errors
/// `Name` where no header could say it, `InvalidRequest` where it is there twice and differs.
pub(crate) fn queried(headers: &mut HeaderMap, uri: &Uri) -> Result<(), Error> {
    let is_said = uri.query().is_some_and(|query| query.contains("adapter="));
    if !is_said || headers.get_all(&ADAPTER).iter().any(|value| !value.is_empty()) {
        return Ok(());
    }
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let pairs = pairs.map(|Query(pairs)| pairs).unwrap_or_default();
    let mut names = pairs.into_iter().filter(|(key, name)| key == "adapter" && !name.is_empty());
    let Some((_, name)) = names.next() else { return Ok(()) };
    if let Some((_, other)) = names.find(|(_, other)| !is_same(&name, other)) {
        let (name, other) = (shown(&name), shown(&other));
        let message = format!("the query names adapter '{name}' and adapter '{other}': name one");
        return Err(Error::request(message));
    }
    let value = HeaderValue::from_bytes(name.as_bytes());
    let value = value.map_err(|_| Error::name("adapter", &"it has a control character"))?;
    headers.insert(ADAPTER, value);
    Ok(())
}

/// Whether two names are one target's.
fn is_same(name: &str, other: &str) -> bool {
    name == other
        || match (TargetModel::new(name).check(), TargetModel::new(other).check()) {
            (Ok(name), Ok(other)) => name == other,
            _ => false,
        }
}

/// A name as messages repeat it.
fn shown(name: &str) -> String {
    name.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

/// The adapters that a body names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Adapters {
    /// None: the model itself is asked.
    #[default]
    None,
    /// One for everything, and the field that says so.
    One(&'static str, String),
    /// One for each input, and the field that says so; an empty name is the model itself.
    Each(&'static str, Vec<String>),
}

impl Adapters {
    /// Reads LMI's `adapters`, a name or a list with one for each input, and what others call one:
    /// `adapter`, `adapter_id`.
    ///
    /// # Errors
    /// `Field` where it is neither, or they differ.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, Error> {
        let adapters = Self::named(fields, "adapters", "adapters")?;
        adapters.or(Self::named(fields, "adapter", "adapter")?)?.or(Self::named(
            fields,
            "adapter_id",
            "adapter_id",
        )?)
    }

    /// The same of `parameters`, as text-generation-inference has it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn of_parameters(parameters: &mut Fields) -> Result<Self, Error> {
        let adapters = Self::named(parameters, "adapters", "parameters.adapters")?;
        adapters.or(Self::named(parameters, "adapter", "parameters.adapter")?)?.or(Self::named(
            parameters,
            "adapter_id",
            "parameters.adapter_id",
        )?)
    }

    /// What one field says, under the path that messages have for it.
    fn named(fields: &mut Fields, name: &str, field: &'static str) -> Result<Self, Error> {
        let wrong = |fields: &Fields| {
            fields.wrong(name, "must be a name or a list of names, one per input")
        };
        match fields.take(name) {
            None => Ok(Self::None),
            Some(serde_json::Value::String(name)) => Ok(Self::one(field, name)),
            Some(serde_json::Value::Array(names)) => match strings(names) {
                Some(names) if names.iter().all(String::is_empty) => Ok(Self::None),
                Some(names) => Ok(Self::Each(field, names)),
                None => Err(wrong(fields)),
            },
            Some(_) => Err(wrong(fields)),
        }
    }

    /// One for everything; an empty name is the model itself.
    pub(crate) fn one(field: &'static str, name: String) -> Self {
        if name.is_empty() { Self::None } else { Self::One(field, name) }
    }

    /// The same with what another field says, where not both name adapters; of one and the same the
    /// field that says most.
    ///
    /// # Errors
    /// `Field` where both do and differ.
    pub(crate) fn or(self, other: Self) -> Result<Self, Error> {
        match (self.agrees(&other), other) {
            (true, Self::None) => Ok(self),
            (true, other) if matches!(self, Self::None) => Ok(other),
            (true, other @ Self::Each(..)) => Ok(other),
            (true, _) => Ok(self),
            (false, other) => {
                let (names, field, others) = (self.told(), other.field(), other.told());
                let says =
                    format!("names {names}, and {field} names {others}: name one adapter, once");
                Err(Error::field(self.field(), &says))
            }
        }
    }

    /// Whether two say the same, or one says nothing.
    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::None) | (Self::None, _) => true,
            (Self::One(_, one), Self::One(_, other)) => is_same(one, other),
            (Self::Each(_, names), Self::Each(_, others)) => {
                let mut pairs = names.iter().zip(others);
                names.len() == others.len() && pairs.all(|(name, other)| is_same(name, other))
            }
            (Self::One(_, one), Self::Each(_, names))
            | (Self::Each(_, names), Self::One(_, one)) => {
                names.iter().all(|name| is_same(name, one))
            }
        }
    }

    fn field(&self) -> &'static str {
        match self {
            Self::None => HEADER,
            Self::One(field, _) | Self::Each(field, _) => field,
        }
    }

    /// The names in words.
    fn told(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::One(_, name) => format!("'{}'", shown(name)),
            Self::Each(_, names) => {
                let first: Vec<String> =
                    names.iter().take(TOLD).map(|name| format!("'{}'", shown(name))).collect();
                let more = if names.len() > TOLD { ", …" } else { "" };
                format!("[{}{more}]", first.join(", "))
            }
        }
    }

    /// Of a body that has no list of inputs: a list that says one name only is that name.
    pub(crate) fn for_all(self) -> Self {
        match self {
            Self::Each(field, names) if names.iter().all(|name| is_same(name, &names[0])) => {
                Self::one(field, names.into_iter().next().unwrap_or_default())
            }
            other => other,
        }
    }

    /// What an answer calls the model that gave it, where this names one.
    pub(crate) fn called(&self) -> Option<&str> {
        match self {
            Self::One(_, name) => Some(name.trim_end_matches('/')),
            Self::None | Self::Each(..) => None,
        }
    }

    /// Checks the names against the number of inputs; those of a single input are one name.
    ///
    /// # Errors
    /// `Field` where there is not one for each, or too many different ones are named.
    pub(crate) fn fitting(self, inputs: usize) -> Result<Self, Error> {
        let Self::Each(field, names) = self else { return Ok(self) };
        if names.len() != inputs {
            let expected = format!("must have one name for each of the {inputs} inputs");
            return Err(Error::field(field, &expected));
        }
        let mut different: Vec<&String> = names.iter().collect();
        different.sort_unstable();
        different.dedup();
        match different.as_slice() {
            [only] => Ok(Self::one(field, (*only).clone())),
            many if many.len() > ADAPTERS_MAX => {
                let expected = format!("must name at most {ADAPTERS_MAX} different adapters");
                Err(Error::field(field, &expected))
            }
            _ => Ok(Self::Each(field, names)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    fn read(adapters: Value) -> Result<Adapters, Error> {
        Adapters::read(&mut Fields::new(Map::from_iter([("adapters".to_owned(), adapters)])))
    }

    #[test]
    fn a_list_of_adapters_has_one_name_for_each_input() {
        let each = |names: &[&str]| {
            Adapters::Each("adapters", names.iter().map(ToString::to_string).collect())
        };
        let named = read(json!(["a", "", "a"])).unwrap();
        assert_eq!(named, each(&["a", "", "a"]));
        assert!(named.clone().fitting(2).is_err());
        assert_eq!(named.clone().fitting(3).unwrap(), named);
        let same = read(json!(["a", "a"])).unwrap().fitting(2).unwrap();
        assert_eq!(same, Adapters::one("adapters", "a".into()));
        let many: Vec<String> = (0..=ADAPTERS_MAX).map(|at| at.to_string()).collect();
        assert!(read(json!(many)).unwrap().fitting(many.len()).is_err());
        assert_eq!(read(json!(["", ""])).unwrap(), Adapters::None);
        assert_eq!(read(json!("")).unwrap(), Adapters::None);
        for bad in [json!(1), json!(["a", 1]), json!({})] {
            assert!(read(bad).is_err());
        }
    }

    #[test]
    fn fields_that_agree_name_one_adapter_and_others_are_told_by_their_names() {
        let one = |name: &str| Adapters::one("adapter_id", name.into());
        assert_eq!(one("a").or(one("a")).unwrap(), one("a"));
        assert_eq!(one("a").or(one("a/")).unwrap(), one("a"));
        assert_eq!(one("").or(one("a")).unwrap(), one("a"));
        let each = read(json!(["a", "a"])).unwrap();
        assert_eq!(one("a").or(each.clone()).unwrap(), each);
        assert_eq!(each.clone().or(one("a")).unwrap(), each);
        assert_eq!(each.clone().for_all(), Adapters::one("adapters", "a".into()));
        let told = |found: Result<Adapters, Error>| found.unwrap_err().to_string();
        assert_eq!(
            told(read(json!("a")).unwrap().or(one("b"))),
            "adapters names 'a', and adapter_id names 'b': name one adapter, once"
        );
        assert!(told(each.or(one("b"))).starts_with("adapters names ['a', 'a'], and adapter_id"));
        let long = told(one(&"a".repeat(1 << 20)).or(one("\u{7}")));
        assert!(long.len() < 512 && long.contains("'\\u{7}'"), "{long}");
    }
}
