//! Which model a command means.

use clap::Args;
use roundhouse_types::{EndpointName, TargetModel, TargetName};

use crate::error::Error;

/// A target on the command line.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// The target model, or ENDPOINT:TARGET.
    pub target: String,
    /// The endpoint; without it and without a colon, the only one or the one called default.
    /// A target with a colon in its own name needs it.
    #[arg(long, value_name = "NAME")]
    pub endpoint: Option<String>,
}

/// A checked target at an endpoint, or at the one the server takes for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) endpoint: Option<EndpointName>,
    pub(crate) target: TargetName,
}

impl TargetArgs {
    /// Splits and checks the names.
    ///
    /// # Errors
    /// [`Error::Usage`], with what is wrong.
    pub(crate) fn check(&self) -> Result<Target, Error> {
        if self.target.contains("://") {
            let text = &self.target;
            let message = format!(
                "'{text}' is an address: name the target as `roundhouse models` does, by what is below \
                 its mount's uri"
            );
            return Err(Error::Usage(message));
        }
        let (endpoint, target) = match (&self.endpoint, self.target.split_once(':')) {
            (Some(endpoint), _) => (Some(endpoint_name(endpoint)?), self.target.as_str()),
            (None, Some((endpoint, target))) => (Some(endpoint_name(endpoint)?), target),
            (None, None) => (None, self.target.as_str()),
        };
        let target = TargetModel::new(target)
            .check()
            .map_err(|why| Error::Usage(format!("'{target}' is not a target: {why}")))?;
        Ok(Target { endpoint, target })
    }
}

impl Target {
    /// `endpoint:target`, or the target alone.
    pub(crate) fn name(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => format!("{endpoint}:{}", self.target),
            None => self.target.to_string(),
        }
    }
}

/// Checks an endpoint's name.
///
/// # Errors
/// [`Error::Usage`], with what is wrong.
pub(crate) fn endpoint_name(text: &str) -> Result<EndpointName, Error> {
    text.parse().map_err(|why| Error::Usage(format!("'{text}' is not an endpoint's name: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, endpoint: Option<&str>) -> Result<String, Error> {
        let args = TargetArgs { target: target.into(), endpoint: endpoint.map(Into::into) };
        args.check().map(|target| {
            format!("{:?} {}", target.endpoint.map(|it| it.to_string()), target.target)
        })
    }

    #[test]
    fn an_endpoint_may_stand_before_a_colon_or_in_its_flag() {
        assert_eq!(check("a/b.tar.gz", None).unwrap(), "None a/b.tar.gz");
        assert_eq!(check("ep:a/b/", None).unwrap(), "Some(\"ep\") a/b");
        assert_eq!(check("x:y", Some("ep")).unwrap(), "Some(\"ep\") x:y");
    }

    #[test]
    fn wrong_names_are_usage_errors() {
        for (target, endpoint) in [("", None), ("../a", None), ("e p:a", None), ("a", Some("-"))] {
            assert_eq!(check(target, endpoint).unwrap_err().exit_code(), 2, "{target}");
        }
        let told = check("s3://models/support/base", None).unwrap_err().to_string();
        assert!(told.contains("is an address") && !told.contains("begins with"), "{told}");
    }
}
