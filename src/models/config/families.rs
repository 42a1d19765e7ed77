//! The decoder families: which reader maps a configuration to the one decoder, and what is
//! refused with which reason.

use serde_json::Value;

use super::decoder::DecoderConfig;
use super::{
    cohere, experts, falcon, gemma, glm, gpt, gpt_oss, granite, llama, mistral, olmo, opt, phi,
    qwen, smollm, starcoder, wrapped,
};
use crate::Error;

/// Maps a `config.json` to what the decoder computes.
pub(crate) type Read = fn(&Value) -> Result<DecoderConfig, Error>;

/// Every family by the architecture that files name, and by the type of model for which transformers
/// takes it where they name none.
const FAMILIES: [(&str, &str, Read); 37] = [
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
    ("Gemma3ForConditionalGeneration", "gemma3", wrapped::gemma3),
    ("Mistral3ForConditionalGeneration", "mistral3", wrapped::mistral3),
    ("LlavaForConditionalGeneration", "llava", wrapped::llava),
    ("LlavaNextForConditionalGeneration", "llava_next", wrapped::llava),
    ("OPTForCausalLM", "opt", opt::opt),
    ("PhiForCausalLM", "phi", phi::phi),
    ("OlmoForCausalLM", "olmo", olmo::olmo),
    ("Olmo2ForCausalLM", "olmo2", olmo::olmo2),
    ("Olmo3ForCausalLM", "olmo3", olmo::olmo3),
    ("GraniteForCausalLM", "granite", granite::granite),
    ("Starcoder2ForCausalLM", "starcoder2", starcoder::starcoder2),
    ("CohereForCausalLM", "cohere", cohere::cohere),
    ("Cohere2ForCausalLM", "cohere2", cohere::cohere2),
    ("GlmForCausalLM", "glm", glm::glm),
    ("Glm4ForCausalLM", "glm4", glm::glm4),
    ("Qwen2MoeForCausalLM", "qwen2_moe", experts::qwen2_moe),
    ("OlmoeForCausalLM", "olmoe", olmo::olmoe),
    ("FalconForCausalLM", "falcon", falcon::falcon),
    ("GPTJForCausalLM", "gptj", gpt::gptj),
    ("GPTBigCodeForCausalLM", "gpt_bigcode", gpt::gpt_bigcode),
    ("GptOssForCausalLM", gpt_oss::TYPE, gpt_oss::gpt_oss),
    ("GraniteMoeForCausalLM", "granitemoe", granite::granite_moe),
    ("GraniteMoeSharedForCausalLM", "granitemoeshared", granite::granite_moe),
];

/// What is served, as refusals say it.
pub(crate) const SERVED: &str = "; LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
     Qwen3ForCausalLM, Phi3ForCausalLM, SmolLM3ForCausalLM, GemmaForCausalLM, \
     Gemma2ForCausalLM, Gemma3ForCausalLM, GPT2LMHeadModel, StableLmForCausalLM, \
     GPTNeoXForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM, Qwen2MoeForCausalLM, \
     OlmoeForCausalLM, GptOssForCausalLM, GraniteMoeForCausalLM, \
     GraniteMoeSharedForCausalLM, OPTForCausalLM, PhiForCausalLM, OlmoForCausalLM, Olmo2ForCausalLM, \
     Olmo3ForCausalLM, GraniteForCausalLM, Starcoder2ForCausalLM, CohereForCausalLM, \
     Cohere2ForCausalLM, GlmForCausalLM, Glm4ForCausalLM, FalconForCausalLM, GPTJForCausalLM, \
     GPTBigCodeForCausalLM; of what reads images, too, the text part of \
     Gemma3ForConditionalGeneration, Mistral3ForConditionalGeneration, \
     LlavaForConditionalGeneration and LlavaNextForConditionalGeneration; and Bert, Roberta, XLMRoberta, Camembert, DistilBert, MPNet, ModernBert, \
     DebertaV2, Electra and Albert as Model, ForSequenceClassification, ForTokenClassification, ForMaskedLM or \
     ForQuestionAnswering, and decoders as Model or ForSequenceClassification are";

/// What an architecture answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// The next token.
    Tokens,
    /// A text's vector: it is bare, without a head.
    Vectors,
    /// Labels of a text.
    Labels,
}

/// The reader of an architecture's configuration, if it is a decoder that is served, and what it
/// answers with.
pub(crate) fn find(architecture: &str) -> Option<(Read, Answers)> {
    let named = |wanted: &str| FAMILIES.iter().find(|(name, ..)| *name == wanted);
    if let Some((_, _, read)) = named(architecture) {
        return Some((*read, Answers::Tokens));
    }
    let ends = [("ForSequenceClassification", Answers::Labels), ("Model", Answers::Vectors)];
    let (family, answers) =
        ends.iter().find_map(|(end, answers)| Some((architecture.strip_suffix(end)?, *answers)))?;
    // What reads images, too, is called by the family's name alone where it is whole.
    let family = family.strip_suffix("Text").unwrap_or(family);
    let whole = ["ForCausalLM", "LMHeadModel"].iter();
    let (_, _, read) = whole.filter_map(|end| named(&format!("{family}{end}"))).next()?;
    Some((*read, answers))
}

/// The architecture that generates text with models of that type, if it is served.
pub(crate) fn of_type(model_type: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|(_, of, _)| *of == model_type).map(|(name, ..)| *name)
}

/// Why an architecture that is not served is refused.
pub(crate) fn refusal(architecture: &str) -> Error {
    const EXPERTS: [&str; 5] = ["Moe", "MoE", "Deepseek", "Dbrx", "Llama4ForCausalLM"];
    const IMAGES: [&str; 4] = ["ConditionalGeneration", "Vision", "Phi3V", "Phi4MM"];
    let is = |parts: &[&str]| parts.iter().any(|part| architecture.contains(part));
    let (what, advice) = if is(&IMAGES) {
        (
            " (inputs other than one text) is",
            "; checkpoints of the text decoder alone are, and the text part of \
             Gemma3ForConditionalGeneration, Mistral3ForConditionalGeneration, \
             LlavaForConditionalGeneration and LlavaNextForConditionalGeneration",
        )
    } else if is(&EXPERTS) {
        (
            " (a mixture of experts) is",
            "; MixtralForCausalLM, Qwen2MoeForCausalLM, Qwen3MoeForCausalLM, OlmoeForCausalLM, \
             GptOssForCausalLM, GraniteMoeForCausalLM, GraniteMoeSharedForCausalLM and dense \
             decoders are",
        )
    } else if is(&["NomicBert"]) {
        (
            " (computed by code of its authors, not by transformers) is",
            "; run it behind a container or a Python handler, or take a ModernBert embedder",
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

    #[test]
    fn an_architecture_s_end_tells_what_it_answers_with() {
        let answers = |name: &str| find(name).map(|(_, answers)| answers);
        assert_eq!(answers("Qwen3ForCausalLM"), Some(Answers::Tokens));
        assert_eq!(answers("Qwen3Model"), Some(Answers::Vectors));
        assert_eq!(answers("Gemma3TextModel"), Some(Answers::Vectors));
        assert_eq!(answers("GPT2LMHeadModel"), Some(Answers::Tokens));
        for name in ["Llama", "Gemma2", "Gemma3Text", "GPT2", "GPTNeoX", "Qwen2"] {
            let name = format!("{name}ForSequenceClassification");
            assert_eq!(answers(&name), Some(Answers::Labels), "{name}");
        }
        assert_eq!(answers("LlamaForTokenClassification"), None);
    }
}
