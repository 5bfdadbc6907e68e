"""What `helm test` asks: it holds for a release that works, and says what is wrong with one that does not."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest

from bitnet_crds import parse_run
from bitnet_operator.admission import review
from chart import CHART, Given, container, manifests, render

SCRIPT = CHART / "files/check_release.py"
Answer = Callable[[str, bytes], tuple[int, str]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_release", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """A server that answers by path and body; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, words = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(words.encode())

        do_POST = do_GET  # noqa: N815 (http.server's own name)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def replica(role: str, metrics: str = "bitnet_operator_leader 1.0\n") -> Answer:
    """One that says what it is, on either port."""
    return lambda path, _: (200, f"{role}; all is well" if path == "/healthz" else metrics)


def api_server(webhook: bool) -> Answer:
    """One that takes what the kind's schema takes, and asks the operator where there is a webhook."""

    def answer(path: str, body: bytes) -> tuple[int, str]:
        assert path.endswith("/bitnetruns?dryRun=All")
        refusal = review(json.loads(body), None).refusal if webhook else None
        if refusal is None:
            return 201, "{}"
        said = f'admission webhook "bitnetruns.bitnet.training" denied the request: {refusal}'
        return 422, json.dumps({"message": said})

    return answer


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a token")
    return tmp_path


def test_its_runs_are_a_right_one_without_a_warning_and_a_wrong_one(script: ModuleType) -> None:
    parse_run(script.RUN)
    right = review(script.RUN, None)
    assert (right.refusal, list(right.warnings)) == (None, [])
    refusal = review(script.empty_phase(), None).refusal
    assert refusal is not None
    assert "spec.phases[0].until" in refusal


def test_a_leader_that_answers_is_enough(script: ModuleType) -> None:
    with serving(replica("leader")) as port:
        assert script.replicas("127.0.0.1", port, port) == "1 replicas answer: leader"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (replica("standby"), "not one leads: standby"),
        (replica("leader", metrics="up 1\n"), "no bitnet_operator_leader"),
        (lambda _path, _body: (503, "leader"), "503"),
    ],
    ids=["nobody leads", "no metrics", "not well"],
)
def test_a_replica_that_is_not_as_it_should_be(script: ModuleType, answer: Answer, said: str) -> None:
    with serving(answer) as port, pytest.raises(script.NotYetError, match=said):
        script.replicas("127.0.0.1", port, port)


def test_a_name_without_a_replica(script: ModuleType) -> None:
    with pytest.raises(script.NotYetError, match="no replica is ready"):
        script.replicas("nobody.invalid")


def test_admission_takes_one_run_and_refuses_the_other(script: ModuleType, account: Path) -> None:
    with ExitStack() as stack:
        strict, plain = (stack.enter_context(serving(api_server(webhook))) for webhook in (True, False))
        said = script.admission(f"http://127.0.0.1:{strict}", "bitnet", True, account)
        assert "spec.phases[0].until" in said
        said = script.admission(f"http://127.0.0.1:{plain}", "bitnet", False, account)
        assert said == "a right run is taken"
        with pytest.raises(script.NotYetError, match="the operator was not asked"):
            script.admission(f"http://127.0.0.1:{plain}", "bitnet", True, account)


def test_an_api_server_that_does_not_know_the_kind(script: ModuleType, account: Path) -> None:
    unknown = (404, json.dumps({"message": "not found"}))
    with (
        serving(lambda _path, _body: unknown) as port,
        pytest.raises(script.NotYetError, match="a right run was not taken: 404 not found"),
    ):
        script.admission(f"http://127.0.0.1:{port}", "bitnet", True, account)


def test_it_insists_until_it_holds_and_not_for_ever(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.time, "sleep", lambda _: None)
    answers = iter([script.NotYetError("not yet"), None])

    def check() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "well"

    assert script.insist(check) == "well"

    def never() -> str:
        raise script.NotYetError("never")

    with pytest.raises(script.NotYetError, match="never"):
        script.insist(never, patience=0)


def test_what_is_wrong_is_said_in_a_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REPLICAS": "nobody.invalid", "NAMESPACE": "bitnet", "WEBHOOK": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(script, "insist", lambda check: check())
    with pytest.raises(SystemExit, match=r"the release does not work: nobody\.invalid"):
        script.main()


def test_the_pod_has_the_script_and_what_it_asks_for() -> None:
    (pod,) = [each for each in manifests(Given()) if each["kind"] == "Pod"]
    (asking,) = pod["spec"]["containers"]
    (passed,) = asking["args"]
    assert passed == SCRIPT.read_text()
    assert "$(" not in passed, "Kubernetes would put a variable there"
    assert asking["image"] == container(render())["image"]
    values = {each["name"]: each["value"] for each in asking["env"]}
    assert values == {
        "REPLICAS": "trial-bitnet-operator.bitnet.svc",
        "NAMESPACE": "bitnet",
        "WEBHOOK": "true",
    }


def test_the_pod_leaves_out_what_the_release_does_not_have() -> None:
    given = Given(("metrics.service.enabled=false", "webhook.enabled=false"))
    (pod,) = [each for each in manifests(given) if each["kind"] == "Pod"]
    values = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert (values["REPLICAS"], values["WEBHOOK"]) == ("", "false")
