"""What uploaders do to the stores: whole versions slowly, halves, truncated and corrupted ones."""

from __future__ import annotations

import random
import time

import models
from oracle import Target
from world import PAUSE, SETTLE, World


def publish(world: World, target: Target, rng: random.Random, version: int | None = None,
            salt: str = "", slowly: bool = True) -> None:
    """Brings a whole version into the store, file by file in any order. Hold `busy`."""
    if version is None:
        target.version += 1
        version = target.version
    files = world.files(target, version, salt)
    order = list(files)
    rng.shuffle(order)
    # Those that stay as they are first: the last file to change makes the version whole.
    order.sort(key=lambda path: target.contents.get(path) != hash(files[path]))
    longest = 0.0
    with world.writing(target):
        world.oracle.note(target, "partial")
        for stale in set(world.present(target)) - set(files):
            world.remove(target, stale)
        for path in order:
            is_last = path == order[-1]
            if is_last:
                world.oracle.note(target, "whole", models.signature(target.name, version, salt))
            begun = time.monotonic()
            world.put(target, path, files[path], rng if slowly else None)
            if slowly and not is_last:
                time.sleep(rng.uniform(0, PAUSE))
            longest = max(longest, time.monotonic() - begun)
    target.contents = {path: hash(body) for path, body in files.items()}
    target.whole = (version, salt)
    if longest > SETTLE - 1.0:
        # This machine stood still: a mixture seen then would be a documented limit.
        world.event("a gap in an upload near the settling time", f"{target.name} {longest:.2f} s")


def replace(world: World, target: Target, rng: random.Random) -> str:
    publish(world, target, rng)
    return f"{target.name} to v{target.version}"


def roll_back(world: World, target: Target, rng: random.Random) -> str:
    """The uploader puts an earlier version again."""
    version = max(1, target.version - rng.randrange(1, 3))
    publish(world, target, rng, version)
    return f"{target.name} to v{version} again"


def other_weights(world: World, target: Target, rng: random.Random) -> str:
    """Weight files of full length with other numbers in them: by all that can be known, a version."""
    target.version += 1
    publish(world, target, rng, target.version, f"c{rng.randrange(1000)}")
    return f"{target.name} v{target.version} with corrupted numbers"


def truncated(world: World, target: Target, rng: random.Random) -> str:
    """A new version whose weights, or whose archive, ends early, and stays so."""
    files = world.files(target, target.version + 1)
    target.version += 1
    path = max(files, key=lambda path: len(files[path]))
    with world.writing(target):
        world.oracle.note(target, "bad")
        body = files[path]
        world.put(target, path, body[:rng.randrange(len(body) // 10, len(body) - 700)], rng)
    target.contents = {}
    return f"{target.name} v{target.version}: {path or 'archive'}"


def corrupted(world: World, target: Target, rng: random.Random) -> str:
    """A file of full length that is no such file any more."""
    target.version += 1
    files = world.files(target, target.version)
    if target.form == "tar":
        return truncated(world, target, rng)
    path = "" if target.form == "archive" else rng.choice(sorted(files))
    body = bytearray(files[path])
    if path == "":
        at = rng.randrange(len(body) // 4, len(body) // 2)
        body[at:at + 64] = bytes(byte ^ 0x55 for byte in body[at:at + 64])
    else:
        # The beginning: a header, or the brace that JSON begins with.
        body[:64] = bytes(byte ^ 0x55 for byte in body[:64])
    with world.writing(target):
        world.oracle.note(target, "bad")
        world.put(target, path, bytes(body), rng)
    target.contents = {}
    return f"{target.name} v{target.version}: {path or 'archive'}"


def half(world: World, target: Target, rng: random.Random) -> str:
    """An upload that breaks off: some files are new, the weights not whole or not all there."""
    target.version += 1
    files = world.files(target, target.version)
    if "" in files:
        return truncated(world, target, rng)
    with world.writing(target):
        world.oracle.note(target, "partial")
        weights = [path for path in files if path.endswith(".safetensors")]
        if target.form == "sharded" and rng.random() < 0.5:
            world.remove(target, rng.choice(weights))
        else:
            path = rng.choice(weights)
            world.put(target, path, files[path][:rng.randrange(1, len(files[path]))], rng)
        if rng.random() < 0.5:
            world.put(target, "config.json", files["config.json"], rng)
        world.oracle.note(target, "bad")
    target.contents = {}
    return f"{target.name} v{target.version}"


def delete(world: World, target: Target, rng: random.Random) -> str:
    with world.writing(target):
        world.oracle.note(target, "partial")
        paths = world.present(target)
        rng.shuffle(paths)
        for path in paths:
            world.remove(target, path)
            time.sleep(rng.uniform(0, PAUSE / 2))
        world.oracle.note(target, "absent")
    target.contents = {}
    return target.name


def never_complete(world: World, target: Target, rng: random.Random) -> str:
    """A new name under which an upload begins over and over and is never completed."""
    target.version += 1
    files = world.files(target, target.version)
    with world.writing(target):
        world.oracle.note(target, "partial")
        for path in world.present(target):
            world.remove(target, path)
        weights = files["model.safetensors"]
        kept = rng.choice([b"", weights[:4], weights[:rng.randrange(8, len(weights))], None])
        for path in ("config.json", "tokenizer.json"):
            world.put(target, path, files[path], rng)
        if kept is not None:
            world.put(target, "model.safetensors", kept, rng)
        world.oracle.note(target, "bad")
    return target.name
