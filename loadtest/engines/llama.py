"""llama-server as an engine that is started by command; see README.md beside it."""

import argparse
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import boto3
import botocore.config
import openai

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from started import Server

options = argparse.ArgumentParser()
options.add_argument("--roundhouse", required=True)
options.add_argument("--llama-server", required=True)
options.add_argument("--gguf", action="append", required=True, help="twice: two models")
options.add_argument("--memory", default="900MiB", help="declared for each")
options.add_argument("--budget", default="1200MiB", help="room for one of them")
options.add_argument("--pairs", type=int, default=20)
options.add_argument("--out", required=True)
options = options.parse_args()

PROMPT = [{"role": "user", "content": "Tell me of the sea."}]
ASKED = {"messages": PROMPT, "max_tokens": 32, "temperature": 0, "seed": 1}
# Keys and values that are computed in other batches round otherwise, and then texts differ.
OWN = {"cache_prompt": False}
results = {"machine": platform.platform(), "cores": os.cpu_count()}


def tell(line):
    print(line, flush=True)


def processes():
    """The llama-servers below the server, by port."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"llama-server") and str(work).encode() in b" ".join(words):
            found[int(words[words.index(b"--port") + 1])] = int(folder.name)
    return found


def start(folder):
    names = ["llm/a", "llm/b"]
    for name, gguf in zip(names, options.gguf, strict=True):
        place = folder / "store" / name
        place.mkdir(parents=True)
        shutil.copyfile(gguf, place / "model.gguf")
    command = [options.llama_server, "--host", "127.0.0.1", "--port", "{port}", "-m", "{model}"]
    command += ["--alias", "{target}", "-c", "2048", "-t", "2", "--no-webui", "--jinja"]
    settings = f"""version = 1
[memory]
budget = "{options.budget}"
[residency]
idle_ttl = "15s"
[cache]
dir = "{folder}/cache"
[store]
settle = "0s"
[[endpoint]]
name = "default"
[[endpoint.engine]]
target = "llm/*"
command = {json.dumps(command)}
memory = "{options.memory}"
measure = false
[[endpoint.mount]]
uri = "file://{folder}/store/"
"""
    (folder / "roundhouse.toml").write_text(settings)
    tell(settings)
    log = open(folder / "log", "w")
    return Server(options.roundhouse, ["--config", folder / "roundhouse.toml"], log=log)


def streamed(client, model):
    """Text, events, and seconds to the first and to the last event."""
    began, first, text, events = time.perf_counter(), None, "", 0
    for chunk in client.chat.completions.create(model=model, stream=True, extra_body=OWN, **ASKED):
        first = first or time.perf_counter() - began
        events += 1
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    return text, events, first, time.perf_counter() - began


def timed(work):
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


def pairs(client, port):
    direct = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    found = {"through": [], "direct": []}
    for _ in range(options.pairs):
        found["through"].append(streamed(client, "llm/a")[2:])
        found["direct"].append(streamed(direct, "llm/a")[2:])
    for name, column in (("first", 0), ("last", 1)):
        medians = {way: statistics.median(it[column] for it in all) for way, all in found.items()}
        results[f"{name}_event_seconds"] = medians
        tell(f"{name} event, median of {options.pairs} pairs: through {medians['through']:.4f} s, "
             f"direct {medians['direct']:.4f} s")


def sagemaker(data, whole):
    runtime = boto3.client(
        "sagemaker-runtime", region_name="us-east-1", endpoint_url=f"http://{data}",
        aws_access_key_id="x", aws_secret_access_key="x",
        config=botocore.config.Config(retries={"max_attempts": 0}),
    )
    named = {"EndpointName": "default", "ContentType": "application/json"}
    body = runtime.invoke_endpoint(TargetModel="llm/a", Body=json.dumps({**ASKED, **OWN}), **named)["Body"]
    said = json.loads(body.read())["choices"][0]["message"]["content"]
    assert said == whole, (said, whole)
    asked = json.dumps({**ASKED, **OWN, "stream": True, "model": "llm/a"})
    parts = runtime.invoke_endpoint_with_response_stream(Body=asked, **named)["Body"]
    pieces = [part["PayloadPart"]["Bytes"] for part in parts]
    assert b"".join(pieces).rstrip().endswith(b"data: [DONE]"), pieces[-1]
    tell(f"InvokeEndpoint says the same; InvokeEndpointWithResponseStream: {len(pieces)} parts")
    results["response_stream_parts"] = len(pieces)


def run(data, admin):
    client = openai.OpenAI(base_url=f"http://{data}/v1", api_key="none", max_retries=0, timeout=300)
    assert not processes(), "none is started before it is asked for"
    whole = lambda model: client.chat.completions.create(model=model, extra_body=OWN, **ASKED)  # noqa: E731
    answer, cold = timed(lambda: whole("llm/a"))
    text = answer.choices[0].message.content
    _, warm = timed(lambda: whole("llm/a"))
    tell(f"cold {cold:.3f} s, warm {warm:.3f} s: {text!r}")
    results.update(cold_seconds=cold, warm_seconds=warm, text=text)
    [(port, process)] = processes().items()
    again, events, _, _ = streamed(client, "llm/a")
    assert again == text, (again, text)
    tell(f"the same text as a stream of {events} events")
    results["stream_events"] = events
    pairs(client, port)
    sagemaker(data, text)

    _, switched = timed(lambda: whole("llm/b"))
    assert process not in processes().values() and len(processes()) == 1
    tell(f"the other one made it leave and answered after {switched:.3f} s")
    [(_, process)] = processes().items()
    os.kill(process, signal.SIGKILL)
    # A request that comes before the system has told of the end is lost with the process.
    while process in processes().values():
        time.sleep(0.01)
    time.sleep(0.5)
    _, restarted = timed(lambda: whole("llm/b"))
    assert process not in processes().values()
    tell(f"killed, and answered by another process after {restarted:.3f} s")
    results.update(switch_seconds=switched, restart_seconds=restarted)
    page = urllib.request.urlopen(f"http://{admin}/admin/v1/residency").read()
    [resident] = json.loads(page)["devices"][0]["residents"]
    tell(f"resident: {json.dumps(resident)}")
    _, idle = timed(lambda: [time.sleep(0.1) for _ in iter(processes, {})])
    tell(f"idle, it was stopped after {idle:.1f} s (idle_ttl is 15 s)")
    results["idle_seconds"] = idle


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    tell(subprocess.run([options.llama_server, "--version"], capture_output=True, text=True).stderr)
    server = start(work)
    try:
        run(server.data, server.admin)
    finally:
        server.stop()
    assert not processes(), "nothing is left of the engines"
pathlib.Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
tell("nothing is left")
