//! Names of AWS's principals, and patterns of them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Characters of an ARN at most; AWS's own have 2048.
const CHARACTERS: usize = 2048;
/// Digits of an account's number.
const ACCOUNT_DIGITS: usize = 12;

/// Who signed, as STS names it: `arn:aws:sts::123456789012:assumed-role/robot/session`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arn {
    text: Box<str>,
    /// Where the account's number and the resource begin.
    account: usize,
    resource: usize,
}

impl Arn {
    pub(super) fn account(&self) -> &str {
        &self.text[self.account..self.account + ACCOUNT_DIGITS]
    }

    fn resource(&self) -> &str {
        &self.text[self.resource..]
    }

    /// `arn:aws:sts::123456789012:`.
    fn owner(&self) -> &str {
        &self.text[..self.resource]
    }
}

impl FromStr for Arn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_plain = text.len() <= CHARACTERS && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (arn, partition, service) = (next(), next(), next());
        let (region, account, resource) = (next(), next(), next());
        let is_account =
            account.len() == ACCOUNT_DIGITS && account.bytes().all(|it| it.is_ascii_digit());
        let holds = is_plain
            && arn == "arn"
            && !partition.is_empty()
            && matches!(service, "iam" | "sts")
            && region.is_empty()
            && is_account
            && !resource.is_empty();
        if !holds {
            return Err(());
        }
        let resource = text.len() - resource.len();
        let account = resource - 1 - ACCOUNT_DIGITS;
        Ok(Self { text: text.into(), account, resource })
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A set of AWS's principals: an account by its number, one principal by its ARN, those one segment
/// below a path (`…:user/robots/*`) or all below it (`…:user/**`). The ARN of a role stands for all
/// sessions of that role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principals(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Account(Box<str>),
    One(Box<str>),
    /// What stands before the star, with its slash.
    Children(Box<str>),
    Below(Box<str>),
}

/// Why a text is no such pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidPrincipals {
    /// Neither a number nor an ARN.
    #[error(
        "is neither an account's number of 12 digits nor the ARN of a user, role or session, like \
         arn:aws:iam::123456789012:role/robot"
    )]
    Arn,
    /// A `*` within a segment or before the last one.
    #[error("a '*' stands for the whole last segment of a path, and '**' for all that lies below")]
    Star,
    /// A `*` where a role's name should be: sessions are told by their role's name.
    #[error("a role is named whole: for all roles of an account, write the account's number")]
    Role,
}

impl Principals {
    pub(super) fn cover(&self, arn: &Arn) -> bool {
        let text = &*arn.text;
        match &self.0 {
            Kind::Account(account) => **account == *arn.account(),
            Kind::One(one) => **one == *text,
            Kind::Children(fixed) => text.strip_prefix(&**fixed).is_some_and(is_segment),
            Kind::Below(fixed) => text.strip_prefix(&**fixed).is_some_and(|rest| !rest.is_empty()),
        }
    }
}

fn is_segment(text: &str) -> bool {
    !text.is_empty() && !text.contains('/')
}

impl FromStr for Principals {
    type Err = InvalidPrincipals;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipals> {
        if text.len() == ACCOUNT_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self(Kind::Account(text.into())));
        }
        let arn: Arn = text.parse().map_err(|()| InvalidPrincipals::Arn)?;
        let (above, last) = arn.resource().rsplit_once('/').unwrap_or(("", arn.resource()));
        if arn.owner().contains('*') || above.contains('*') {
            return Err(InvalidPrincipals::Star);
        }
        // STS names a session by its role's name, without the role's path.
        if arn.owner().contains(":iam:") && arn.resource().starts_with("role/") {
            if last.contains('*') || last.is_empty() {
                return Err(InvalidPrincipals::Role);
            }
            let owner = arn.owner().replacen(":iam:", ":sts:", 1);
            return Ok(Self(Kind::Children(format!("{owner}assumed-role/{last}/").into())));
        }
        let fixed = || format!("{}{above}/", arn.owner()).into();
        match last {
            _ if above.is_empty() && last.contains('*') => Err(InvalidPrincipals::Star),
            "*" if above == "assumed-role" => Err(InvalidPrincipals::Role),
            "*" => Ok(Self(Kind::Children(fixed()))),
            "**" => Ok(Self(Kind::Below(fixed()))),
            _ if last.contains('*') => Err(InvalidPrincipals::Star),
            _ => Ok(Self(Kind::One(text.into()))),
        }
    }
}
