"""The OpenAI client with a right key, a wrong one, and SageMaker's bearer form.

usage: openai_identity.py DATA_URL ENCODER KEY
"""

import sys

import openai


def main():
    url, encoder, key = sys.argv[1:4]
    right = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    assert encoder in [m.id for m in right.models.list()]
    for wrong in ("sk-wrong", key[:-1], "rh-a-b", "eyJh.eyJh.x"):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=wrong, max_retries=0)
        for call in (client.models.list, lambda: client.embeddings.create(model=encoder, input="x")):
            try:
                call()
            except openai.AuthenticationError as error:
                assert error.status_code == 401, error
                assert error.code == "invalid_api_key", error
                assert wrong not in str(error), error
            else:
                raise AssertionError(f"{wrong} was let in")
    print("ok")


if __name__ == "__main__":
    main()
