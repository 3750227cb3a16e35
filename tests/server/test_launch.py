"""Starting and stopping: the banner, the port, one clear line for what is wrong, exit status."""

import gc
import signal
import socket
import statistics
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lookm.types import ModelInfo
from server.example_request import PICTURES
from server.example_request import data_url as picture
from server.launch import (
    FAILED,
    MISUSED,
    StartError,
    _leave_start_up_alone,
    banner,
    base_url,
    bind,
    check,
    launch,
)
from server.settings import Settings
from tests.server.process import ServerProcess
from tests.server.requests import CHAT, chat


def test_the_banner_says_where_what_and_how_much() -> None:
    info = ModelInfo("llava-demo", 4096, 1024, 16, 2 * 2**30, 2, "bfloat16", "cpu")
    text = banner(Settings(api_keys="k"), "llava-demo", info, "http://127.0.0.1:8000")
    assert "is ready: http://127.0.0.1:8000" in text
    assert "llava-demo (bfloat16, cpu), 4,096 tokens of context" in text
    assert "2 GiB: conversations of 2,048 tokens: 64 at full, 64 at look-m@0.2" in text
    assert "(--max-running 64; pages for 1,024 and 5,041)" in text
    assert '-H "Authorization: Bearer $LOOKM_API_KEY"' in text


@pytest.mark.parametrize(
    ("default", "promised"),
    [
        ("look-m-plus@0.1-0.5", "4 at full, 8 at look-m-plus@0.5, 39 at look-m-plus@0.1"),
        ("h2o@0.25", "4 at full, 16 at h2o@0.25 (--max"),
        ("h2o@512", "4 at full, 16 at h2o@512 (--max"),
    ],
)
def test_the_banner_counts_at_what_is_the_default(default: str, promised: str) -> None:
    info = ModelInfo("llava-demo", 4096, 1024, 16, 8 * 2**20, 2, "bfloat16", "cpu")
    settings = Settings(kv_cache=default, max_running=15 if "h2o" in default else 64)
    text = banner(settings, "llava-demo", info, "http://127.0.0.1:8000")
    assert promised.replace("16 at", "15 at") in text
    if "h2o" in default:
        assert "(--max-running 15; pages for 4 and 16)" in text


def test_a_model_of_windows_alone_is_promised_at_full_alone() -> None:
    info = ModelInfo("m", 4096, 1024, 16, 8 * 2**20, 2, "bfloat16", "cpu", windows=(512, 512))
    text = banner(Settings(), "m", info, "http://127.0.0.1:8000")
    assert "conversations of 2,048 tokens: 4 at full\n" in text


def test_the_pictures_of_the_example_are_small() -> None:
    assert all(len(picture(scene)) < 600 for scene in PICTURES)


def test_a_taken_port_is_reported_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert launch(Settings(model="fake", port=port)) == FAILED
    output = capfd.readouterr().err
    assert output.count("\n") == 1
    assert output.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")
    assert "--port" in output


def test_a_free_port_is_found_and_named() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert base_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_small_answers_do_not_wait_for_acknowledgements(fake_server: ServerProcess) -> None:
    """Head and body are two writes: with Nagle's algorithm the second waits 40 ms."""
    took_s = []
    with httpx.Client(base_url=fake_server.url) as client:
        for _ in range(15):
            took_s.append(client.get("/healthz").elapsed.total_seconds())
    assert statistics.median(took_s) < 0.03


def test_an_unknown_host_is_reported() -> None:
    with pytest.raises(StartError, match="cannot listen on"):
        bind("nothing.invalid", 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_cache": "zip"},
        {"model": "/no/such/model"},
        {"model": "fake", "api_key_file": "/no/such/file"},
    ],
)
def test_wrong_settings_are_found_before_anything_starts(settings: dict[str, str]) -> None:
    with pytest.raises(StartError) as caught:
        check(Settings(**settings))
    assert caught.value.status == MISUSED
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_load_ends_the_process_with_its_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert launch(Settings(model="fake:fail=load", port=0)) == FAILED
    output = capfd.readouterr()
    assert "error: The fake model cannot be loaded" in output.err
    assert "Traceback" not in output.err
    assert "ready" not in output.out


def stopped_while_streaming(max_tokens: int, *options: str) -> list[str]:
    """The lines of a stream after its first, its server stopped there; which ends well."""
    server = ServerProcess("--model", "fake:step_s=0.02", "--threads", "1", *options)
    try:
        server.wait_ready()
        with ThreadPoolExecutor(1) as sender, httpx.Client() as client:
            request = chat(stream=True, max_tokens=max_tokens)
            with client.stream("POST", server.url + CHAT, json=request) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                rest = sender.submit(lambda: list(lines)).result(30)
        assert server.process.wait(30) == 0
        return rest
    finally:
        server.process.kill()
        server.process.communicate()


def test_sigterm_lets_running_requests_finish() -> None:
    rest = stopped_while_streaming(20)
    assert rest[-2] == "data: [DONE]"
    assert any('"finish_reason":"length"' in line for line in rest)


def test_what_outlasts_the_drain_gets_an_error_and_is_not_cut_off() -> None:
    rest = stopped_while_streaming(2000, "--drain-timeout-s", "0.2")
    assert rest[-2] == "data: [DONE]"
    assert any("The server is stopping. Send the request again." in line for line in rest[-6:])


def test_what_was_loaded_at_start_is_not_collected_again() -> None:
    try:
        _leave_start_up_alone()
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()
