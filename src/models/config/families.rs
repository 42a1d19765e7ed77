//! The decoder families: which reader maps a configuration to the one decoder, and what is
//! refused with which reason.

use serde_json::Value;

use super::decoder::DecoderConfig;
use super::{experts, gemma, gpt, llama, mistral, phi, qwen, smollm};
use crate::Error;

/// Maps a `config.json` to what the decoder computes.
pub(crate) type Read = fn(&Value) -> Result<DecoderConfig, Error>;

/// Every family by the architecture that files name, and by the type of model for which transformers
/// takes it where they name none.
const FAMILIES: [(&str, &str, Read); 14] = [
    ("LlamaForCausalLM", "llama", llama::llama),
    ("MistralForCausalLM", "mistral", mistral::mistral),
    ("Qwen2ForCausalLM", "qwen2", qwen::qwen2),
    ("Qwen3ForCausalLM", "qwen3", qwen::qwen3),
    ("Phi3ForCausalLM", "phi3", phi::phi3),
    ("SmolLM3ForCausalLM", "smollm3", smollm::smollm3),
    ("GemmaForCausalLM", "gemma", gemma::gemma),
    ("Gemma2ForCausalLM", "gemma2", gemma::gemma2),
    ("Gemma3ForCausalLM", "gemma3_text", gemma::gemma3),
    ("GPT2LMHeadModel", "gpt2", gpt::gpt2),
    ("StableLmForCausalLM", "stablelm", llama::stablelm),
    ("GPTNeoXForCausalLM", "gpt_neox", gpt::gpt_neox),
    ("MixtralForCausalLM", "mixtral", experts::mixtral),
    ("Qwen3MoeForCausalLM", "qwen3_moe", experts::qwen3_moe),
];

/// What is served, as refusals say it.
pub(crate) const SERVED: &str = "; LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
     Qwen3ForCausalLM, Phi3ForCausalLM, SmolLM3ForCausalLM, GemmaForCausalLM, \
     Gemma2ForCausalLM, Gemma3ForCausalLM, GPT2LMHeadModel, StableLmForCausalLM, \
     GPTNeoXForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM, and Bert, Roberta, XLMRoberta, Camembert, DistilBert, MPNet, ModernBert, \
     DebertaV2 and Electra as Model, ForSequenceClassification, ForTokenClassification, ForMaskedLM or \
     ForQuestionAnswering are";

/// The reader of an architecture's configuration, if it is a decoder that is served, and whether it
/// is bare: without a head, to make vectors of texts.
pub(crate) fn find(architecture: &str) -> Option<(Read, bool)> {
    let named = |wanted: &str| FAMILIES.iter().find(|(name, ..)| *name == wanted);
    if let Some((_, _, read)) = named(architecture) {
        return Some((*read, false));
    }
    let whole = format!("{}ForCausalLM", architecture.strip_suffix("Model")?);
    named(&whole).map(|(_, _, read)| (*read, true))
}

/// The architecture that generates text with models of that type, if it is served.
pub(crate) fn of_type(model_type: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|(_, of, _)| *of == model_type).map(|(name, ..)| *name)
}

/// Why an architecture that is not served is refused.
pub(crate) fn refusal(architecture: &str) -> Error {
    const EXPERTS: [&str; 6] = ["Moe", "MoE", "Deepseek", "Dbrx", "GptOss", "Llama4ForCausalLM"];
    const IMAGES: [&str; 4] = ["ConditionalGeneration", "Vision", "Phi3V", "Phi4MM"];
    let is = |parts: &[&str]| parts.iter().any(|part| architecture.contains(part));
    let (what, advice) = if is(&IMAGES) {
        (" (inputs other than one text) is", "; checkpoints of the text decoder alone are")
    } else if is(&EXPERTS) {
        (
            " (a mixture of experts) is",
            "; MixtralForCausalLM, Qwen3MoeForCausalLM and dense decoders are",
        )
    } else {
        (" is", SERVED)
    };
    Error::NotServed { what: format!("architecture '{architecture}'{what}"), advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_list_every_family() {
        for (name, ..) in FAMILIES {
            assert!(SERVED.contains(name), "{name}");
        }
    }
}
