"""Writes two traces and a list of sizes, the same at every run.

    python3 loadtest/simulate/traces.py FOLDER [ALIBABA_CSV]

scan.csv   ten days of 400 models: by day 40 of them are asked for, some much more often than others; each
           night a job asks for all 400 once, one after the other, within an hour.
tail.csv   2,000 models asked for by a power law so flat that half of the requests go to the last 1,800;
           at any time of a week.
sizes      for each base model of the Alibaba trace 2.1, 4.3, 6.9 or 12.9 GB in turn, by name.
"""

import csv
import pathlib
import random
import sys
from itertools import accumulate

DAY = 86_400


def chosen(dice, names, exponent, count):
    """Names by a power law of their rank."""
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(len(names))))
    return dice.choices(names, cum_weights=weights, k=count)


def scan():
    dice = random.Random(11)
    names = [f"team-{number % 8}/model-{number:03}" for number in range(400)]
    hot = dice.sample(names, 40)
    rows = []
    for day in range(10):
        begin = day * DAY
        rows += [(begin + 2 * 3600 + 9 * at, name) for at, name in enumerate(sorted(names))]
        asked = chosen(dice, hot, 0.9, 1600)
        rows += [(begin + dice.uniform(7 * 3600, 22 * 3600), name) for name in asked]
    return rows


def tail():
    dice = random.Random(12)
    names = [f"model-{number:04}" for number in range(2000)]
    dice.shuffle(names)
    return [(dice.uniform(0, 7 * DAY), name) for name in chosen(dice, names, 0.75, 20_000)]


def write(path, rows):
    with open(path, "w", encoding="ascii") as file:
        file.write("time,target\n")
        file.writelines(f"{time:.3f},{name}\n" for time, name in sorted(rows))


def main():
    folder = pathlib.Path(sys.argv[1])
    write(folder / "scan.csv", scan())
    write(folder / "tail.csv", tail())
    if len(sys.argv) > 2:
        with open(sys.argv[2], encoding="utf-8", newline="") as file:
            names = {row["checkpoint_model_version_id"] or "unnamed" for row in csv.DictReader(file)}
        sizes = ["2.1GB", "4.3GB", "6.9GB", "12.9GB"]
        lines = [f"{name}={sizes[at % 4]}\n" for at, name in enumerate(sorted(names))]
        (folder / "sizes").write_text("".join(lines), encoding="ascii")


if __name__ == "__main__":
    main()
