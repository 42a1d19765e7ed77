"""What the task pipelines of transformers make of the numbers of tiny seeded models: for each case the tokens, the
logits and the answer."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification,
    BertModel, RobertaConfig, RobertaForMaskedLM, RobertaForQuestionAnswering, RobertaForSequenceClassification,
    RobertaForTokenClassification, RobertaModel, RobertaTokenizerFast, pipeline,
)

from reference_output import fresh_folder, randomise, rounded, write_json
from reference_bert import TOKENIZER_TEXT
from wordpiece import wordpiece

MAX_LENGTH = 40
ENTITIES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
ENTAILMENT = ["contradiction", "neutral", "entailment"]
TEXTS = [
    "The keeper counts the wagons at night.",
    "Café señor & Brücke, 42! unbelievable 火车 leaves",
    "Der Zug fährt über die Brücke",
]
LONG = "the engine faces the open stall and the driver counts every wagon " * 3
QUESTIONS = [
    ("who counts the wagons?", "The keeper counts the wagons; the driver wiped the gauge glass at seven."),
    ("Wann fährt der Zug?", "Der Zug fährt über die Brücke. Le café est fermé."),
    ("what faces the stall?", LONG),
]


def write_task_cases(root: Path) -> None:
    for name, make in {"wordpiece": wordpiece_case, "bytes": bytes_case}.items():
        folder = fresh_folder(root / name)
        tokenizer, config, classes = make()
        tokenizer.save_pretrained(folder)
        runner = Runner(folder, tokenizer, config, classes)
        write_json(
            folder / "expected.json",
            dict(
                entities=entity_cases(runner), fills=fill_cases(runner), answers=answer_cases(runner),
                zero_shot=zero_shot_cases(runner), labels=label_cases(runner), features=feature_cases(runner),
            ),
        )


def wordpiece_case():
    tokenizer = wordpiece(TOKENIZER_TEXT, 240, MAX_LENGTH)
    classes = dict(
        tokens=BertForTokenClassification, mask=BertForMaskedLM, answers=BertForQuestionAnswering,
        sequence=BertForSequenceClassification, plain=BertModel,
    )
    return tokenizer, BertConfig, classes


def bytes_case():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ids, trim_offsets=True, add_prefix_space=False)
    classes = dict(
        tokens=RobertaForTokenClassification, mask=RobertaForMaskedLM, answers=RobertaForQuestionAnswering,
        sequence=RobertaForSequenceClassification, plain=RobertaModel,
    )
    return RobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH), RobertaConfig, classes


class Runner:
    """Runs pipelines and notes what their models were given and what they answered."""

    def __init__(self, folder, tokenizer, config, classes):
        self.folder, self.tokenizer, self.config, self.classes = folder, tokenizer, config, classes

    def pipeline(self, task: str, head: str, seed: int, labels: list[str] | None = None):
        labels = labels or ["a", "b"]
        config = self.config(
            vocab_size=len(self.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=MAX_LENGTH + 4, pad_token_id=self.tokenizer.pad_token_id,
            type_vocab_size=2, id2label=dict(enumerate(labels)), label2id={x: i for i, x in enumerate(labels)},
        )
        model = self.classes[head](config).eval()
        randomise(model, seed, spread=0.7)
        model.save_pretrained(self.folder / task)
        self.rows = []
        model.register_forward_hook(self.note, with_kwargs=True)
        return pipeline(task, model=model, tokenizer=self.tokenizer, device="cpu")

    def note(self, _model, _args, kwargs, output):
        types = kwargs.get("token_type_ids")
        logits = output.get("logits", output.get("last_hidden_state"))
        if logits is None:
            logits = torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
        row = dict(
            ids=kwargs["input_ids"][0].tolist(), types=None if types is None else types[0].tolist(),
            logits=[float(f"{value:.5g}") for value in logits[0].flatten().tolist()],
        )
        self.rows.append(row)

    @torch.inference_mode()
    def run(self, pipe, *inputs, **parameters):
        self.rows = []
        answer = pipe(*inputs, **parameters)
        return dict(rows=self.rows, answer=plain(answer))


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def entity_cases(runner: Runner) -> dict:
    pipe = runner.pipeline("token-classification", "tokens", 31, ENTITIES)
    cases = []
    for text in TEXTS:
        for strategy in ("none", "simple", "first", "average", "max"):
            told = runner.run(pipe, text, aggregation_strategy=strategy)
            cases.append(dict(text=text, aggregation=strategy, ignored=["O"], stride=None) | told)
    told = runner.run(pipe, TEXTS[0], aggregation_strategy="simple", ignore_labels=["PER", "LOC"])
    cases.append(dict(text=TEXTS[0], aggregation="simple", ignored=["PER", "LOC"], stride=None) | told)
    told = runner.run(pipe, LONG, aggregation_strategy="simple", stride=6)
    pad = runner.tokenizer.pad_token_id
    for row in told["rows"]:
        length = len([token for token in row["ids"] if token != pad])
        row["ids"], row["logits"] = row["ids"][:length], row["logits"][: length * len(ENTITIES)]
    cases.append(dict(text=LONG, aggregation="simple", ignored=["O"], stride=6) | told)
    return dict(labels=ENTITIES, cases=cases)


def fill_cases(runner: Runner) -> list:
    pipe = runner.pipeline("fill-mask", "mask", 32)
    mask = runner.tokenizer.mask_token
    cases = []
    for text, parameters in [
        (f"The keeper {mask} the wagons.", {}),
        (f"The {mask} counts the {mask}.", dict(top_k=2)),
        (f"Der {mask} fährt", dict(top_k=3, targets=["the", "Zug", "night"])),
        (f"Der {mask} fährt", dict(targets=["wagon"])),
    ]:
        cases.append(dict(text=text, parameters=parameters) | runner.run(pipe, text, **parameters))
    return cases


def answer_cases(runner: Runner) -> list:
    pipe = runner.pipeline("question-answering", "answers", 33)
    cases = []
    for question, context in QUESTIONS:
        for parameters in [
            {}, dict(top_k=4), dict(top_k=3, align_to_words=False, max_answer_len=4),
            dict(handle_impossible_answer=True, top_k=2), dict(max_seq_len=32, doc_stride=7),
        ]:
            told = runner.run(pipe, question=question, context=context, **parameters)
            cases.append(dict(question=question, context=context, parameters=parameters) | told)
    return cases


def zero_shot_cases(runner: Runner) -> dict:
    pipe = runner.pipeline("zero-shot-classification", "sequence", 34, ENTAILMENT)
    cases = []
    for text, labels, parameters in [
        (TEXTS[0], ["train", "coal", "letters"], {}),
        (TEXTS[1], ["train", "café"], dict(multi_label=True)),
        (TEXTS[2], ["night"], dict(hypothesis_template="Das ist {}!")),
        (LONG, ["engine", "river"], {}),
    ]:
        told = runner.run(pipe, text, candidate_labels=labels, **parameters)
        cases.append(dict(text=text, labels=labels, parameters=parameters) | told)
    return dict(labels=ENTAILMENT, cases=cases)


def label_cases(runner: Runner) -> dict:
    labels = ["late", "damaged", "lost"]
    pipe = runner.pipeline("text-classification", "sequence", 35, labels)
    cases = []
    for first, second in [(TEXTS[0], None), (TEXTS[0], "The train leaves"), ("coal", TEXTS[2])]:
        inputs = first if second is None else dict(text=first, text_pair=second)
        for parameters in [dict(top_k=None), dict(top_k=2, function_to_apply="sigmoid"),
                           dict(top_k=3, function_to_apply="none")]:
            told = runner.run(pipe, inputs, **parameters)
            cases.append(dict(text=first, pair=second, parameters=parameters) | told)
    return dict(labels=labels, cases=cases)


def feature_cases(runner: Runner) -> list:
    """Only of short texts: the pipeline does not cut."""
    pipe = runner.pipeline("feature-extraction", "plain", 36)
    return [dict(text=text, answer=rounded(runner.run(pipe, text)["answer"])) for text in ["the coal", "Brücke 42"]]
