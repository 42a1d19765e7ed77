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

/// The model that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Aim {
    pub(crate) model: ModelId,
    /// What it must be an adapter of, where the request names that as well.
    pub(crate) base: Option<ModelId>,
    /// The adapter was named already: what the body says of adapters does not count.
    by_header: bool,
    /// The container contract's: the platform is the door, and has decided who may ask.
    pub(crate) of_platform: bool,
}

impl Aim {
    /// A target model.
    pub(crate) fn at(model: ModelId) -> Self {
        Self { model, base: None, by_header: false, of_platform: false }
    }

    /// The adapter that a header names, of a model that is named too or of its own.
    pub(crate) fn by_header(adapter: ModelId, base: Option<ModelId>) -> Self {
        Self { model: adapter, base, by_header: true, of_platform: false }
    }

    /// The same, of a model that the platform loaded.
    pub(crate) fn of_platform(self) -> Self {
        Self { of_platform: true, ..self }
    }

    /// An adapter of this model that the body names: a target of the same endpoint.
    ///
    /// # Errors
    /// `Field` for an illegal name.
    pub(crate) fn adapter(&self, field: &str, name: &str) -> Result<Self, Error> {
        let target = TargetModel::new(name)
            .check()
            .map_err(|reason| Error::field(field, &format!("is not a legal name: {reason}")))?;
        let model = ModelId { endpoint: self.model.endpoint.clone(), target };
        Ok(Self {
            model,
            base: Some(self.model.clone()),
            by_header: false,
            of_platform: self.of_platform,
        })
    }

    /// What of the body's adapters counts.
    pub(crate) fn heeds(&self, adapters: Adapters) -> Adapters {
        if self.by_header { Adapters::None } else { adapters }
    }
}

/// What the adapter header says, if it is there; empty counts as absent.
///
/// # Errors
/// `InvalidRequest` where it is there twice.
pub(crate) fn header(headers: &HeaderMap) -> Result<Option<TargetModel>, Error> {
    let mut values = headers.get_all(&ADAPTER).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Error::request(format!("the header {ADAPTER} is there more than once")));
    }
    let named = first.filter(|value| !value.is_empty());
    Ok(named.map(|value| TargetModel::new(value.as_bytes())))
}

/// Has DJL's `?adapter=` say what the header would, where that is not there.
///
/// # Errors
/// `Field` where no header could say it.
pub(crate) fn queried(headers: &mut HeaderMap, uri: &Uri) -> Result<(), Error> {
    let is_said = uri.query().is_some_and(|query| query.contains("adapter="));
    if !is_said || headers.contains_key(&ADAPTER) {
        return Ok(());
    }
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let pairs = pairs.map(|Query(pairs)| pairs).unwrap_or_default();
    if let Some((_, name)) = pairs.into_iter().find(|(key, _)| key == "adapter") {
        let name = HeaderValue::from_bytes(name.as_bytes());
        let name = name.map_err(|_| Error::field("adapter", "is not a legal name"))?;
        headers.insert(ADAPTER, name);
    }
    Ok(())
}

/// The adapters that a body names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Adapters {
    /// None: the model itself is asked.
    #[default]
    None,
    /// One for everything, and the field that says so.
    One(&'static str, String),
    /// One for each input; an empty name is the model itself.
    Each(Vec<String>),
}

impl Adapters {
    /// Reads LMI's `adapters`, a name or a list with one for each input, and what others call one:
    /// `adapter`, `adapter_id`.
    ///
    /// # Errors
    /// `Field` where it is neither, or they differ.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, Error> {
        let mut adapters = Self::listed(fields)?;
        for field in ["adapter", "adapter_id"] {
            let name = fields.string(field)?.unwrap_or_default();
            adapters = adapters.or(Self::one(field, name))?;
        }
        Ok(adapters)
    }

    fn listed(fields: &mut Fields) -> Result<Self, Error> {
        const FIELD: &str = "adapters";
        let wrong = |fields: &Fields| {
            fields.wrong(FIELD, "must be a name or a list of names, one per input")
        };
        match fields.take(FIELD) {
            None => Ok(Self::None),
            Some(serde_json::Value::String(name)) => Ok(Self::one(FIELD, name)),
            Some(serde_json::Value::Array(names)) => match strings(names) {
                Some(names) if names.iter().all(String::is_empty) => Ok(Self::None),
                Some(names) => Ok(Self::Each(names)),
                None => Err(wrong(fields)),
            },
            Some(_) => Err(wrong(fields)),
        }
    }

    /// One for everything; an empty name is the model itself.
    pub(crate) fn one(field: &'static str, name: String) -> Self {
        if name.is_empty() { Self::None } else { Self::One(field, name) }
    }

    /// The same with what another field says, where not both name adapters.
    ///
    /// # Errors
    /// `Field` where both do and differ.
    pub(crate) fn or(self, other: Self) -> Result<Self, Error> {
        match (self, other) {
            (Self::None, other) => Ok(other),
            (own, Self::None) => Ok(own),
            (Self::One(field, one), Self::One(_, other)) if one == other => {
                Ok(Self::One(field, one))
            }
            _ => Err(Error::field("adapters", "and another field name different adapters")),
        }
    }

    /// Checks the names against the number of inputs; those of a single input are one name.
    ///
    /// # Errors
    /// `Field` where there is not one for each, or too many different ones are named.
    pub(crate) fn fitting(self, inputs: usize) -> Result<Self, Error> {
        let Self::Each(names) = self else { return Ok(self) };
        if names.len() != inputs {
            let expected = format!("must have one name for each of the {inputs} inputs");
            return Err(Error::field("adapters", &expected));
        }
        let mut different: Vec<&String> = names.iter().collect();
        different.sort_unstable();
        different.dedup();
        match different.as_slice() {
            [only] => Ok(Self::one("adapters", (*only).clone())),
            many if many.len() > ADAPTERS_MAX => {
                let expected = format!("must name at most {ADAPTERS_MAX} different adapters");
                Err(Error::field("adapters", &expected))
            }
            _ => Ok(Self::Each(names)),
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
        let each = |names: &[&str]| Adapters::Each(names.iter().map(ToString::to_string).collect());
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
    fn two_fields_that_name_different_adapters_contradict() {
        let one = |name: &str| Adapters::one("adapters", name.into());
        assert_eq!(one("a").or(one("a")).unwrap(), one("a"));
        assert_eq!(one("").or(one("a")).unwrap(), one("a"));
        assert!(one("a").or(one("b")).is_err());
    }
}
