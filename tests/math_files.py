"""Small files in the schemas of the published math sets, as their repositories have them."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXT = pa.string()
DAPO_SCHEMA = pa.schema(
    [
        ("data_source", TEXT),
        ("prompt", pa.list_(pa.struct([("content", TEXT), ("role", TEXT)]))),
        ("ability", TEXT),
        ("reward_model", pa.struct([("ground_truth", TEXT), ("style", TEXT)])),
        ("extra_info", pa.struct([("index", TEXT)])),
    ]
)
DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def write_jsonl(path: Path, rows: Iterable[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def dapo_row(problem: str, answer: str, index: str) -> dict:
    """A row of DAPO-Math-17k: the problem stands inside DAPO's prompt."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{DAPO_BEFORE}{problem}{DAPO_AFTER}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def write_dapo(path: Path, rows: list[dict]) -> Path:
    return write_parquet(path, rows, DAPO_SCHEMA)


MATH_500 = [
    {
        "problem": "Compute\n$\\dbinom{8}{4}$.",
        "solution": "It is $\\boxed{70}$.",
        "answer": "70",
        "subject": "Counting & Probability",
        "level": 1,
        "unique_id": "test/counting_and_probability/181.json",
    },
    {
        "problem": "Simplify $\\frac{2}{\\sqrt{2}}$.",
        "solution": "It is $\\boxed{\\sqrt{2}}$.",
        "answer": "\\sqrt{2}",
        "subject": "Algebra",
        "level": 5,
        "unique_id": "test/algebra/7.json",
    },
]
AIME_2024 = [
    {
        "id": 60 + i,
        "problem": f"Find the remainder when ${i} + 1$ is divided by 1000.",
        "solution": "We add.",
        "answer": answer,
        "url": f"https://artofproblemsolving.com/{i}",
        "year": "2024",
    }
    for i, answer in enumerate(["204", "025", "0"])
]
AIME_2024_CAPITALS = [
    {
        "ID": f"2024-I-{i}",
        "Problem": f"Find the value of ${i}^2$.",
        "Solution": "We square.",
        "Answer": i * i,
    }
    for i in (4, 2)
]
AIME_2025 = [
    {"problem": "Find the sum of all bases b > 9.", "answer": "70", "id": "0"},
    {"problem": "Find the degree measure of the arc.", "answer": "336^\\circ", "id": "1"},
]
AMC_2023 = [
    {
        "id": 0,
        "problem": "What is $142.0$ as a whole number?",
        "answer": 142.0,
        "url": "https://aops.com/0",
    },
    {"id": 1, "problem": "What is $-4$?", "answer": -4.0, "url": "https://aops.com/1"},
]
GSM8K_TRAIN = [
    {
        "question": "Natalia sold clips to 48 friends, and half as many in May. How many?",
        "answer": "In May she sold 48/2 = <<48/2=24>>24.\nTogether <<48+24=72>>72.\n#### 72",
    },
    {"question": "How many are 10 thousands?", "answer": "10 times #### 1000 is it.\n#### 10,000"},
]
GSM8K_TEST = [
    {"question": "Janet's ducks lay 16 eggs. She eats 20. How many?", "answer": "#### -4"}
]


def write_published(directory: Path) -> dict[str, Path]:
    """A file or directory for `--source` of every published set; DAPO's has what is counted by hand
    below.

    12 rows: "A" 4 times, once with other white space; "B" 3 times; "C" twice with 7 and once with
    8; "D" and "E" once. So 4 problems are kept, 5 rows are duplicates, and 3 rows belong to a
    contradiction.
    """
    order = [
        *("A:1", "B:2", "C:7", "A:1", "D:-4", "B:2"),
        *("a:1", "C:8", "E:1000", "A:1", "C:7", "B:2"),
    ]
    texts = {name: f"What is problem {name}?" for name in "ABCDE"} | {"a": "What  is\nproblem A? "}
    rows = [
        dapo_row(texts[name], answer, f"id-{name}")
        for name, answer in (x.split(":") for x in order)
    ]
    gsm8k = directory / "gsm8k"
    write_parquet(gsm8k / "main" / "train-00000-of-00001.parquet", GSM8K_TRAIN)
    write_parquet(gsm8k / "main" / "test-00000-of-00001.parquet", GSM8K_TEST)
    return {
        "dapo_math_17k": write_dapo(directory / "dapo.parquet", rows),
        "math_500": write_jsonl(directory / "math.jsonl", MATH_500),
        "aime_2024": write_parquet(directory / "aime24.parquet", AIME_2024),
        "aime_2025": write_jsonl(directory / "aime25.jsonl", AIME_2025),
        "amc_2023": write_parquet(directory / "amc.parquet", AMC_2023),
        "gsm8k": gsm8k,
    }
