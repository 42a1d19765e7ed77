//! Where chat templates are rendered.
//!
//! Templates are the artefacts' and are bounded in steps and output, but in memory and time only by
//! whoever runs them. So serving renders through a [`Renderer`]: the server's renders in processes of
//! their own, [`InProcess`] in this one. Both run [`Compiled`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use roundhouse_types::{ModelId, TenantName};
use serde_json::{Map, Value};

use crate::Error;

mod compiled;
mod python;

pub use compiled::{Compiled, CompiledCache, MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX};

/// An artefact's chat templates by name, as they were uploaded: nothing was made of them yet. They may
/// include one another.
#[derive(Clone, PartialEq, Eq)]
pub struct TemplateSources {
    by_name: BTreeMap<String, String>,
    digest: [u8; 32],
}

impl TemplateSources {
    /// Templates by name.
    pub fn new(by_name: BTreeMap<String, String>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for text in by_name.iter().flat_map(|(name, source)| [name, source]) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self { digest: *hasher.finalize().as_bytes(), by_name }
    }

    /// The templates.
    pub fn by_name(&self) -> &BTreeMap<String, String> {
        &self.by_name
    }

    /// What they are known by: no others have it (BLAKE3).
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl fmt::Debug for TemplateSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TemplateSources").field(&self.by_name.keys()).finish()
    }
}

/// One template that is to be rendered.
#[derive(Debug)]
pub struct Rendering<'a> {
    /// The artefact's templates.
    pub sources: &'a TemplateSources,
    /// Which of them.
    pub name: &'a str,
    /// What it sees.
    pub context: Map<String, Value>,
}

/// Renders one template. Blocks for as long as that takes, which is bounded.
pub type Render = Box<dyn FnOnce(Rendering<'_>) -> Result<String, Error> + Send>;

/// Where templates are rendered.
pub trait Renderer: Send + Sync {
    /// Waits until it is a tenant's turn to render one template of a model, which is named where something
    /// is to be told of it. The turn is given back when the
    /// rendering is done, or the result dropped; dropping the future gives up the wait.
    ///
    /// # Errors
    /// Of the rendering: `InvalidInput` for what the template raises and where it goes beyond its
    /// limits, `Overloaded` where it did so again and again, and `Internal` where nothing can be rendered here.
    fn turn(&self, model: &ModelId, tenant: Option<TenantName>) -> BoxFuture<'static, Render>;
}

/// Renders in this process, whose memory a template can exhaust: for tests, for tools, and where an
/// operator knows whose templates they are.
#[derive(Debug, Clone, Default)]
pub struct InProcess(Arc<Mutex<CompiledCache>>);

impl InProcess {
    /// Renders one template, in turn with nobody.
    pub fn render(&self) -> Render {
        let cache = Arc::clone(&self.0);
        Box::new(move |rendering| {
            let Rendering { sources, name, context } = rendering;
            let cached = || cache.lock().unwrap_or_else(PoisonError::into_inner);
            let known = cached().get(sources.digest());
            let compiled = known.unwrap_or_else(|| {
                // Two at once compile twice, and one of them is dropped.
                let compiled = Arc::new(Compiled::new(sources.by_name()));
                cached().put(*sources.digest(), &compiled);
                compiled
            });
            compiled.render(name, context)
        })
    }
}

impl Renderer for InProcess {
    fn turn(&self, _: &ModelId, _: Option<TenantName>) -> BoxFuture<'static, Render> {
        let render = self.render();
        Box::pin(async move { render })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(named: &[(&str, &str)]) -> TemplateSources {
        let owned = named.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        TemplateSources::new(owned.collect())
    }

    #[test]
    fn templates_that_differ_in_anything_are_known_by_something_else() {
        let all = [
            sources(&[]),
            sources(&[("default", "ab")]),
            sources(&[("default", "a"), ("tool_use", "b")]),
            sources(&[("defaulta", "b")]),
            sources(&[("default", "b"), ("tool_use", "a")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other.digest() != one.digest()), "{one:?}");
        }
        assert_eq!(sources(&[("default", "ab")]).digest(), all[1].digest());
    }
}
