"""The server over HTTP with the bundled model: what clients of OpenAI and vLLM send, and what they get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import PATIENCE, Served, serving, until

from paceline import LLM, SamplingParams
from paceline.serve.fields import UNSUPPORTED
from paceline.serve.protocol import ChatBody, CompletionBody, TokenizeBody

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = "The history of the city begins"
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]
THREE = {"num_speculative_tokens": 3}
WARM: dict[str, Any] = {"max_tokens": 16, "temperature": 0.8, "seed": 11}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ["--threads", "1", "--drafter", "mtp,ngram", "--chunk-interval", "0"]  # a chunk a step
    with serving(tmp_path_factory.mktemp("serve") / "log", *flags) as served:
        yield served


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1)


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE, _strict_response_validation=True
    ) as found:
        yield found


def text_of(server: Served, **body: Any) -> str:
    return str(server.answer(COMPLETIONS, {"prompt": PROMPT} | WARM | body)["choices"][0]["text"])


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"frequency_penalty": 0.5, "top_p": 0.9, "min_p": 0.02}])
def test_the_text_does_not_depend_on_the_speculation(server: Served, llm: LLM, changes: dict[str, Any]) -> None:
    """Over HTTP, whatever is asked, and it is the text of the Python API."""
    offline = llm.generate(PROMPT, SamplingParams(**(WARM | changes)))[0].outputs[0].text
    asked: list[dict[str, Any]] = [{}, {"drafter": "none"}, {"num_speculative_tokens": "auto"}, {"drafter": "ngram"}]
    asked += [{"drafter": drafter, "num_speculative_tokens": k} for drafter in ("mtp", "ngram") for k in (1, 3)]
    assert {text_of(server, **changes, speculation=each) for each in asked} == {offline}


def test_usage_tells_of_the_speculation(server: Served) -> None:
    def usage(**speculation: Any) -> dict[str, Any]:
        found = server.answer(COMPLETIONS, {"prompt": PROMPT, "speculation": speculation} | WARM)["usage"]
        assert found["completion_tokens"] == WARM["max_tokens"]
        assert found["total_tokens"] == found["prompt_tokens"] + found["completion_tokens"]
        return dict(found["speculation"])

    full, two, off = usage(), usage(num_speculative_tokens=2), usage(drafter="none")
    assert (full["drafter"], full["num_speculative_tokens"]) == ("mtp", "auto")
    assert (two["drafter"], two["num_speculative_tokens"]) == ("mtp", 2) and len(two["drafted_by_position"]) == 2
    for found in (full, two):
        assert sum(found["width_histogram"]) == found["verifications"] and 0 <= found["mean_width"] <= 8
        assert found["accepted"] <= found["drafted"] == sum(found["drafted_by_position"])
        assert found["accepted"] == sum(found["accepted_by_position"])
    assert two["accepted"] > 0 and two["acceptance_length"] > 1
    assert (off["drafter"], off["num_speculative_tokens"], off["drafted"]) == ("none", 0, 0)


def test_the_openai_client_chats(client: openai.OpenAI) -> None:
    """Its strict validation is on: a wrong shape raises."""
    fixed: dict[str, Any] = dict(model="default", messages=MESSAGES, **WARM)
    whole = client.chat.completions.create(**fixed, n=2, user="me", metadata={"a": "b"})
    assert [choice.index for choice in whole.choices] == [0, 1] and whole.model == "paceline-16m"
    assert whole.choices[0].finish_reason == "length" and whole.choices[0].message.role == "assistant"
    stream = list(client.chat.completions.create(**fixed, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.content == "".join(
        chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices
    )
    assert [chunk.usage is None for chunk in stream] == [True] * (len(stream) - 1) + [False]
    assert not stream[-1].choices and stream[0].choices[0].delta.role == "assistant"
    assert stream[-2].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in stream}) == 1


def test_usage_in_every_chunk(server: Served) -> None:
    """As guidellm asks for it: it grows, and ends as that of the whole answer."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    long = {"max_tokens": 600, "ignore_eos": True}  # several of the 50 ms after which a stream sends what came
    events = server.events(COMPLETIONS, {"prompt": PROMPT, "stream_options": options} | WARM | long)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and len(set(counts)) > 2 and counts[-1] == long["max_tokens"]
    assert not events[-1]["choices"] and all(event["choices"] for event in events[:-1])


def test_the_openai_client_completes(client: openai.OpenAI, server: Served, llm: LLM) -> None:
    prompts = [PROMPT, "A dog"]
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    each = [text_of(server, prompt=prompt) for prompt in prompts]
    together = client.completions.create(model="paceline-16m", prompt=prompts, **WARM)
    as_ids = client.completions.create(model="paceline-16m", prompt=ids, **WARM)
    assert [c.text for c in together.choices] == [c.text for c in as_ids.choices] == each
    assert text_of(server, prompt=ids[0]) == each[0]
    streamed = ["", ""]
    # Its type for a finish reason allows no null, which every chunk but the last has, also OpenAI's own.
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE) as lenient:
        for chunk in lenient.completions.create(model="default", prompt=prompts, stream=True, **WARM):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == each


def test_several_answers_and_their_seeds(server: Served) -> None:
    answers = server.answer(COMPLETIONS, {"prompt": [PROMPT, "A dog"], "n": 2} | WARM)["choices"]
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    assert answers[0]["seed"] == WARM["seed"] and answers[0]["text"] == text_of(server)
    for answer, prompt in zip(answers, [PROMPT, PROMPT, "A dog", "A dog"], strict=True):
        assert text_of(server, prompt=prompt, seed=answer["seed"]) == answer["text"]
    unseeded = server.answer(COMPLETIONS, {"prompt": PROMPT, "max_tokens": 12})["choices"][0]
    assert text_of(server, seed=unseeded["seed"], max_tokens=12, temperature=1.0) == unseeded["text"]


def test_stop_strings_cut_text_and_stream(server: Served) -> None:
    free = text_of(server)
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    expected = free[: free.index(stop)]
    body = {"prompt": PROMPT, "stop": [stop, "\u2603"]} | WARM
    whole = server.answer(COMPLETIONS, body)["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (expected, "stop")
    pieces = [event["choices"][0] for event in server.events(COMPLETIONS, body)]
    assert "".join(piece["text"] for piece in pieces) == expected and pieces[-1]["finish_reason"] == "stop"
    assert len(pieces) > 2


def test_a_stop_token_is_no_part_of_the_text(server: Served, llm: LLM) -> None:
    free = server.answer(COMPLETIONS, {"prompt": PROMPT, "logprobs": 0} | WARM)["choices"][0]
    tokens = llm.generate(PROMPT, SamplingParams(**WARM))[0].outputs[0].token_ids
    end = next(token for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
    kept = tokens[: tokens.index(end)]
    found = server.answer(COMPLETIONS, {"prompt": PROMPT, "stop_token_ids": [end]} | WARM)
    assert found["choices"][0]["text"] == llm.tokenizer.decode(kept) != free["text"]
    assert found["usage"]["completion_tokens"] == len(kept) + 1


def test_logprobs_in_both_shapes(server: Served) -> None:
    body = {"prompt": PROMPT, "logprobs": 3, "echo": False} | WARM | {"max_tokens": 6}
    choice = server.answer(COMPLETIONS, body)["choices"][0]
    found = choice["logprobs"]
    assert [len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [6] * 4
    assert "".join(found["tokens"]) == choice["text"] and found["text_offset"][1] == len(found["tokens"][0])
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert value <= 0 and top[token] == value and 3 <= len(top) <= 4
    parts = [event["choices"][0]["logprobs"] for event in server.events(COMPLETIONS, body)]
    assert {name: [entry for part in parts for entry in part[name]] for name in found} == found

    chat = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2} | WARM | {"max_tokens": 6}
    rows = server.answer(CHAT, chat)["choices"][0]["logprobs"]["content"]
    assert len(rows) == 6 and all(len(row["top_logprobs"]) == 2 for row in rows)
    assert all(bytes(row["bytes"]).decode() == row["token"] for row in rows)
    best = [row["top_logprobs"][0]["logprob"] for row in rows]
    assert all(row["logprob"] <= top for row, top in zip(rows, best, strict=True))


def test_echo_and_logit_bias(server: Served, llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    assert text_of(server, echo=True) == PROMPT + text_of(server)
    assert text_of(server, prompt=ids, echo=True) == llm.tokenizer.decode(ids) + text_of(server)
    events = server.events(COMPLETIONS, {"prompt": PROMPT, "echo": True} | WARM)
    assert "".join(event["choices"][0]["text"] for event in events) == PROMPT + text_of(server)
    only = ids[-1]
    assert text_of(server, logit_bias={str(only): 1e9}, max_tokens=3) == llm.tokenizer.decode([only] * 3)


def test_what_lm_eval_asks_for(server: Served, llm: LLM) -> None:
    """The log-probabilities of a context's continuation: prompts of ids, echoed with theirs, and one token more."""
    ids = [llm.tokenizer.encode(text) for text in (PROMPT, "A dog barks at the moon")]
    body = {"model": "default", "prompt": ids, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    expected = llm.generate(ids, SamplingParams(max_tokens=1, prompt_logprobs=1))
    for stream in (False, True):
        if stream:
            choices = [event["choices"][0] for event in server.events(COMPLETIONS, body | {"temperature": 0})]
        else:
            choices = server.answer(COMPLETIONS, body | {"temperature": 0})["choices"]
        for choice, result in zip(sorted(choices, key=lambda choice: int(choice["index"])), expected, strict=True):
            found, prompt, rows = choice["logprobs"], result.prompt_token_ids, result.prompt_logprobs or []
            assert len(found["tokens"]) == len(prompt) + 1 and choice["text"] == "".join(
                llm.tokenizer.decode(prompt + result.outputs[0].token_ids)
            )
            values = [row and row[token] for token, row in zip(prompt, rows, strict=True)]
            assert found["token_logprobs"][:-1] == values and values[0] is None is found["top_logprobs"][0]
            assert all(
                max(top.values()) >= value for top, value in zip(found["top_logprobs"][1:], values[1:], strict=False)
            )


def test_prompt_logprobs_as_vllm_tells_them(server: Served, llm: LLM) -> None:
    """In a completion's choices, and beside the choices of a chat."""
    found = server.answer(COMPLETIONS, {"prompt": PROMPT, "prompt_logprobs": 2} | WARM)["choices"][0]
    (offline,) = llm.generate(PROMPT, SamplingParams(max_tokens=1, prompt_logprobs=2))
    rows, expected = found["prompt_logprobs"], offline.prompt_logprobs or []
    assert found["text"] == text_of(server) and rows[0] is None and len(rows) == len(offline.prompt_token_ids)
    for token, row, values in zip(offline.prompt_token_ids[1:], rows[1:], expected[1:], strict=True):
        assert values is not None and row[str(token)]["logprob"] == values[token]
        assert row[str(token)]["decoded_token"] == llm.tokenizer.token(token) and 2 <= len(row) <= 3
        assert sorted(each["rank"] for each in row.values() if each["rank"]) == [1, 2]
    chat = {"messages": MESSAGES, "max_tokens": 2, "prompt_logprobs": 0}
    answer = server.answer(CHAT, chat)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert server.post(CHAT, chat | {"stream": True}).status_code == 400


def test_what_vllm_bench_serve_sends(server: Served) -> None:
    """Its bodies, with nulls, a header of its own, and its reading of chunks: the usage comes last."""
    fixed = {"model": "default", "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    whole = {"prompt": PROMPT, "repetition_penalty": 1.0, "max_tokens": 12, "logprobs": None, "temperature": 0.0}
    parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    for path, body in ((COMPLETIONS, whole), (CHAT, {"messages": parts, "max_completion_tokens": 12})):
        with server.http.stream("POST", path, json=fixed | body, headers={"x-request-id": "bench-0"}) as response:
            assert response.status_code == 200 and response.headers["x-request-id"] == "bench-0"
            messages = response.read().decode().split("\n\n")
        assert messages[-2:] == ["data: [DONE]", ""] and all(each.startswith("data: ") for each in messages[:-1])
        events = [json.loads(each.removeprefix("data: ")) for each in messages[:-2]]
        assert all(event["choices"] for event in events[:-1]) and not events[-1]["choices"]
        assert events[-1]["usage"]["completion_tokens"] == 12


def test_paddlenlp_requests(server: Served) -> None:
    """A bare text as a chat, and the path of a client whose base URL ends in /v1/chat/completions."""
    asked = {"model": "default", "text": MESSAGES[0]["content"]} | WARM
    chat = server.answer(CHAT, {"messages": MESSAGES} | WARM)["choices"][0]["message"]
    assert server.answer(CHAT, asked)["choices"][0]["message"] == chat
    with openai.OpenAI(base_url=server.url + CHAT, api_key="EMPTY", timeout=PATIENCE) as client:
        found = client.completions.create(model="default", prompt=PROMPT, **WARM)
    assert found.choices[0].text == text_of(server)


def test_tokens_and_texts(server: Served, llm: LLM) -> None:
    text = "naïve café 🚀\u2028 end"
    found = server.answer("/tokenize", {"prompt": text, "return_token_strs": True})
    assert found["tokens"] == llm.tokenizer.encode(text) and found["count"] == len(found["token_strs"])
    assert server.answer("/detokenize", {"tokens": found["tokens"]})["prompt"].endswith(text)
    chat = server.answer("/tokenize", {"messages": MESSAGES})
    assert chat["tokens"] == llm.tokenizer.apply_chat_template(MESSAGES) and chat["max_model_len"] == 2048
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    assert server.answer("/tokenize", {"messages": parts})["tokens"] == chat["tokens"]


def test_small_routes(server: Served) -> None:
    for path in ("/health", "/ready", "/version", "/v1/models/paceline-16m", "/openapi.json", "/docs"):
        assert server.http.get(path).status_code == 200, path
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["id"] == "paceline-16m" and model["object"] == "model"
    assert server.http.get("/v1/models/other").status_code == 404
    assert server.http.get("/nowhere").json()["error"]["type"] == "not_found_error"
    allowed = server.http.options(CHAT, headers={"Origin": "http://x", "Access-Control-Request-Method": "POST"}).headers
    assert "access-control-allow-origin" not in allowed


BAD: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages.0.content: "),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type: ",
    ),
    (CHAT, {"messages": MESSAGES, "text": "hi"}, "messages"),
    (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature"),
    (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, "logprobs"),
    (CHAT, {"messages": MESSAGES, "max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens"),
    (CHAT, {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "xml"}}, "response_format"),
    (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
    (CHAT, {"messages": [{"role": "user"}]}, "content"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "metadata": {}}]}, "metadata"),
    (CHAT, {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "tool_calls"),
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": ""}, "empty"),
    (COMPLETIONS, {"prompt": []}, "empty"),
    (COMPLETIONS, {"prompt": [[]]}, "empty"),
    (COMPLETIONS, {"prompt": [1, "two"]}, "prompt.1: "),
    (COMPLETIONS, {"prompt": [True]}, "prompt"),
    (COMPLETIONS, {"prompt": [10**6]}, "token ids"),
    (COMPLETIONS, {"prompt": [-1]}, "token ids"),
    (COMPLETIONS, {"prompt": [10**30]}, "token ids"),
    (COMPLETIONS, {"prompt": [5] * 3000}, "context"),
    (COMPLETIONS, {"prompt": "a", "n": 0}, "n must"),
    (COMPLETIONS, {"prompt": ["a"] * 1000}, "answers"),
    (COMPLETIONS, {"prompt": "a", "n": 10**400}, "n must"),
    (COMPLETIONS, {"prompt": "a", "temperature": -1}, "temperature"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"prompt": "a", "stop": [""]}, "stop"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "a", "seed": -5}, "seed"),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
    (COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of"),
    (COMPLETIONS, {"prompt": "a", "guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    (COMPLETIONS, {"prompt": "a", "temprature": 1}, "temprature"),
    (COMPLETIONS, {"prompt": "a", "stream_options": {"what": 1}}, "what"),
    (COMPLETIONS, {"prompt": "a", "speculation": {"drafter": "eagle"}}, "mtp or ngram or none"),
    (COMPLETIONS, {"prompt": "a", "speculation": {"drafter": "none", "num_speculative_tokens": 2}}, "speculation"),
    (COMPLETIONS, {"prompt": "a", "speculation": {"num_speculative_tokens": 99}}, "speculation"),
    ("/detokenize", {"tokens": [4096]}, "tokens"),
    ("/tokenize", {}, "prompt"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(server: Served, stream: bool) -> None:
    for path, body, named in BAD:
        response = server.post(path, body | ({"stream": True} if stream and path.startswith("/v1") else {}))
        assert response.status_code == 400, (body, response.text)
        error = response.json()["error"]
        assert named in error["message"] and error["message"].count("\n") == 0, (body, error)
    assert server.post(COMPLETIONS, {"prompt": "a", "model": "gpt"}).status_code == 404
    assert text_of(server)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "stop": "\\udfff"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 100_000 + b"}",
    ],
)
def test_bodies_that_are_no_request(server: Served, content: bytes) -> None:
    response = server.post(COMPLETIONS, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"], content[:40]


def test_harmless_fields_and_nulls_change_nothing(server: Served) -> None:
    extra = {"user": "u", "store": True, "metadata": {}, "service_tier": "auto", "logit_bias": None, "tools": None}
    extra |= {"seed": WARM["seed"], "length_penalty": 1.0, "guided_json": None, "suffix": None, "top_k": -1, "n": 1}
    assert text_of(server, **extra) == text_of(server)


def test_every_request_has_an_id_and_a_line(server: Served) -> None:
    mine = server.post("/tokenize", {"prompt": "a"}, headers={"X-Request-Id": "my-1"}).headers["X-Request-Id"]
    forged = server.post("/tokenize", {"prompt": 1}, headers={"X-Request-Id": "a b {}"}).headers["X-Request-Id"]
    assert mine == "my-1" and forged.startswith("req-")
    until(lambda: forged in [line.get("request_id") for line in server.logged()], "the request was not logged")
    lines = {line["request_id"]: line for line in server.logged() if line["event"] == "request"}
    assert [lines[name]["status"] for name in (mine, forged)] == [200, 400]
    assert lines[mine]["path"] == "/tokenize" and 0 <= lines[mine]["seconds"] < PATIENCE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_a_field_breaks_the_server(server: Served, data: st.DataObject) -> None:
    """Any JSON in any field is answered, or refused with a sentence."""
    path, model = data.draw(
        st.sampled_from([(CHAT, ChatBody), (COMPLETIONS, CompletionBody), ("/tokenize", TokenizeBody)])
    )
    start = {"prompt": "a"} if model is not ChatBody else {"messages": MESSAGES}
    start |= {} if model is TokenizeBody else {"max_tokens": 1, "n": 1}
    field = data.draw(st.sampled_from([*model.model_fields, *UNSUPPORTED, "messages"]))
    content = json.dumps(start | {field: data.draw(JSON)}).encode()
    response = server.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"].endswith(".")


def test_an_answer_can_be_sent_back(server: Served) -> None:
    """As clients do, with all fields of the message that they got."""
    answer = {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "tool_calls": None}
    body = {"messages": [*MESSAGES, answer, *MESSAGES], "max_tokens": 2}
    assert server.answer(CHAT, body)["usage"]["completion_tokens"] <= 2


def test_metrics_add_up(server: Served) -> None:
    names = ("draft", "accepted")
    before = {name: server.metric(f"spec_decode_num_{name}_tokens_total", drafter="mtp") for name in names}
    tokens, ended = server.metric("generation_tokens_total"), server.metric("request_success_total")
    usage = server.answer(COMPLETIONS, {"prompt": PROMPT, "n": 2, "speculation": THREE} | WARM)["usage"]
    for name, key in zip(names, ("drafted", "accepted"), strict=True):
        total = server.metric(f"spec_decode_num_{name}_tokens_total", drafter="mtp")
        assert total - before[name] == usage["speculation"][key] > 0
        assert server.metric(f"spec_decode_num_{name}_tokens_per_pos_total", drafter="mtp") == total
    assert server.metric("generation_tokens_total") - tokens == usage["completion_tokens"]
    assert server.metric("request_success_total") - ended == 2
    assert server.metric("time_to_first_token_seconds_count") == server.metric("e2e_request_latency_seconds_count")
    assert server.metric("engine_seconds_total", part="target") > 0


def test_clients_at_once_get_their_own_texts(server: Served, llm: LLM) -> None:
    """Streams and whole answers, seeds and lengths mixed."""
    bodies = [{"prompt": f"{PROMPT} {i}", "max_tokens": 6 + 3 * i, "seed": i, "temperature": 0.7} for i in range(8)]

    def ask(number: int) -> str:
        if number % 2:
            return str(server.answer(COMPLETIONS, bodies[number])["choices"][0]["text"])
        return "".join(event["choices"][0]["text"] for event in server.events(COMPLETIONS, bodies[number]))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    params = [SamplingParams(**{k: v for k, v in body.items() if k != "prompt"}) for body in bodies]
    offline = llm.generate([str(body["prompt"]) for body in bodies], params)
    assert found == [result.outputs[0].text for result in offline]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(server: Served, stream: bool) -> None:
    aborted = server.metric("request_success_total", finished_reason="abort")
    body = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "n": 2, "stream": stream}
    if stream:
        with server.http.stream("POST", COMPLETIONS, json=body) as response:
            lines = response.iter_lines()  # if it went, so would the connection
            next(lines)
            until(lambda: server.metric("kv_cache_usage_perc") > 0, "nothing was running")
    else:
        with pytest.raises(Exception, match="timed out"):
            server.post(COMPLETIONS, body, timeout=0.5)
    until(lambda: server.metric("num_requests_running") == 0, "the answers were not aborted")
    assert server.metric("kv_cache_usage_perc") == 0
    assert server.metric("request_success_total", finished_reason="abort") == aborted + 2
    assert text_of(server)
