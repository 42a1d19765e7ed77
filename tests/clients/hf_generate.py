"""The Hugging Face client's text generation, whole and streamed, as against text-generation-inference.

usage: hf_generate.py DATA_URL MODEL ADAPTER
"""

import sys

from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError


def main():
    url, model, adapter = sys.argv[1:4]
    header = {"X-Amzn-SageMaker-Target-Model": model}
    prompt = "The shop opens at"
    for base in (url, f"{url}/generate"):
        client = InferenceClient(model=base, headers=header)
        plain = client.text_generation(prompt, max_new_tokens=8, do_sample=False)
        assert isinstance(plain, str) and plain, plain
        told = client.text_generation(prompt, max_new_tokens=8, do_sample=False, details=True)
        assert told.generated_text == plain
        assert told.details.generated_tokens == len(told.details.tokens) > 0
        assert told.details.prefill == []
        read = client.text_generation(
            prompt, max_new_tokens=2, do_sample=False, details=True, decoder_input_details=True)
        first, *rest = read.details.prefill
        assert first.logprob is None and rest and all(token.logprob < 0 for token in rest), read
    events = InferenceClient(model=f"{url}/generate_stream", headers=header)
    pieces = list(events.text_generation(prompt, max_new_tokens=8, do_sample=False, stream=True, details=True))
    assert pieces[-1].generated_text == plain, (pieces[-1], plain)
    assert "".join(piece.token.text for piece in pieces if not piece.token.special) == plain
    other = client.text_generation(prompt, max_new_tokens=8, do_sample=False, adapter_id=adapter)
    assert isinstance(other, str)
    try:
        client.text_generation(prompt, max_new_tokens=8, top_p=7)
        raise SystemExit("a wrong parameter was taken")
    except ValidationError as error:
        assert "top_p" in str(error), error
    print("as expected")


main()
