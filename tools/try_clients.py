"""Published clients, unchanged, against a server that runs: which work, which do not, which are not installed here.

    paceline serve --port 8000 &
    python tools/try_clients.py --url http://127.0.0.1:8000

Each is tried in a process of its own, without network. Prints one line of JSON a client; exit 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from importlib.util import find_spec
from pathlib import Path

TOKENIZER = Path(__file__).parents[1] / "src" / "paceline" / "assets" / "paceline-16m"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
ASK = "Tell me about the sea."

OPENAI = f"""
from openai import OpenAI
client = OpenAI(base_url=URL + "/v1", api_key="none", _strict_response_validation=True)
asked = dict(model="default", messages=[{{"role": "user", "content": {ASK!r}}}], max_tokens=24, seed=1)
whole = client.chat.completions.create(**asked).choices[0].message.content
parts = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True) if c.choices]
assert whole and "".join(parts) == whole
assert client.models.list().data and client.completions.create(model="default", prompt="A dog", max_tokens=8)
"""
LITELLM = f"""
import litellm
asked = dict(model="openai/default", api_base=URL + "/v1", api_key="none", max_tokens=24, seed=1,
             messages=[{{"role": "user", "content": {ASK!r}}}])
whole = litellm.completion(**asked).choices[0].message.content
assert whole and "".join(c.choices[0].delta.content or "" for c in litellm.completion(**asked, stream=True)) == whole
"""
LANGCHAIN = f"""
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=URL + "/v1", api_key="none", model="default", max_tokens=24, seed=1)
whole = chat.invoke({ASK!r})
assert whole.content and whole.usage_metadata["output_tokens"] > 0
assert "".join(str(part.content) for part in chat.stream({ASK!r})) == whole.content
"""
PYTHON = {"openai": OPENAI, "litellm": LITELLM, "langchain_openai": LANGCHAIN}


def run(command: list[str], folder: Path, **environment: str) -> str | None:
    """None when it went well, else the end of what it said."""
    try:
        ended = subprocess.run(
            command, cwd=folder, env=os.environ | OFFLINE | environment, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return "it took more than 300 seconds"
    return None if ended.returncode == 0 else (ended.stdout + ended.stderr)[-2000:]


def llm(url: str, folder: Path) -> str | None:
    model = f"- model_id: here\n  model_name: default\n  api_base: {url}/v1\n  api_key_name: none\n"
    (folder / "extra-openai-models.yaml").write_text(model, encoding="utf-8")
    words = ["-m", "here", "-o", "max_tokens", "24", "--key", "none", ASK]
    return run(["llm", *words], folder, LLM_USER_PATH=str(folder)) or run(
        ["llm", "--no-stream", *words], folder, LLM_USER_PATH=str(folder)
    )


def lm_eval(url: str, folder: Path) -> str | None:
    """A choice of two by log-probability, and a text that is generated."""
    rows = [{"q": "The sea is", "a": [" blue", " a number"], "right": 0}] * 4
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = f"""
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {folder / "rows.json"}}}}}
        test_split: test
        doc_to_text: "{{{{q}}}}"
        """
    choice = """
        task: tiny_choice
        output_type: multiple_choice
        doc_to_choice: "{{a}}"
        doc_to_target: right
        metric_list: [{metric: acc}]
        """
    text = """
        task: tiny_text
        output_type: generate_until
        doc_to_target: "{{a[0]}}"
        generation_kwargs: {until: ["."], max_gen_toks: 16}
        metric_list: [{metric: exact_match}]
        """
    for name, part in (("choice", choice), ("text", text)):
        page = textwrap.dedent(common) + textwrap.dedent(part)
        (folder / f"{name}.yaml").write_text(page, encoding="utf-8")
    model = f"model=default,base_url={url}/v1/completions,tokenizer={TOKENIZER},num_concurrent=2,max_length=1024"
    words = ["--model", "local-completions", "--model_args", model, "--tasks", "tiny_choice,tiny_text"]
    return run(["lm_eval", *words, "--include_path", str(folder)], folder)


def guidellm(url: str, folder: Path) -> str | None:
    options = {
        "--backend": f"kind=openai_http,target={url},model=default",
        "--profile": "kind=synchronous",
        "--constraint": "kind=max_requests,count=4",
        "--data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        "--tokenizer": f"kind=hf_auto,model={TOKENIZER}",
        "--output": f"kind=json,path={folder / 'report.json'}",
    }
    words = [word for pair in options.items() for word in pair]
    return run(["guidellm", "run", *words, "--disable-progress"], folder)


def vllm(url: str, folder: Path) -> str | None:
    """`vllm bench serve`, on completions and on chats. Needs neither a GPU nor vLLM's own kernels."""
    for backend, endpoint in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
        options = {
            "--backend": backend,
            "--endpoint": endpoint,
            "--base-url": url,
            "--model": "default",
            "--tokenizer": str(TOKENIZER),
            "--dataset-name": "random",
            "--random-input-len": "64",
            "--random-output-len": "32",
            "--num-prompts": "12",
            "--max-concurrency": "4",
            "--result-filename": f"{backend}.json",
        }
        words = [word for pair in options.items() for word in pair]
        said = run(["vllm", "bench", "serve", *words, "--ignore-eos", "--save-result", "--disable-tqdm"], folder)
        found = folder / f"{backend}.json"
        if said is not None or not found.exists():
            return said or "it wrote no result"
        result = json.loads(found.read_text(encoding="utf-8"))
        if (result["completed"], result["total_output_tokens"]) != (12, 12 * 32):
            return f"{result['completed']} of 12 requests, {result['total_output_tokens']} of {12 * 32} tokens"
    return None


COMMANDS = {"llm": llm, "lm_eval": lm_eval, "guidellm": guidellm, "vllm": vllm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--only", help="one of them")
    args = parser.parse_args()
    os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    failed = False
    for name in [*PYTHON, *COMMANDS]:
        if args.only not in (None, name):
            continue
        if find_spec(name) is None and shutil.which(name) is None:
            print(json.dumps({"client": name, "result": "not installed"}), flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name in PYTHON:
                said = run([sys.executable, "-c", f"URL = {args.url!r}\n{PYTHON[name]}"], Path(folder))
            else:
                said = COMMANDS[name](args.url, Path(folder))
        failed |= said is not None
        print(json.dumps({"client": name, "result": "good" if said is None else said}), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
