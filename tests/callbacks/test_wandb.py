import socket

from sami.callbacks.wandb import answers, has_login, wandb_logger


def test_wandb_without_login_or_network_goes_offline(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.socket() as server:  # bound, not listening: connections are refused
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        logger = wandb_logger(project="p", name="a/b", folder=str(tmp_path / "run"))
    assert logger._wandb_init["id"] == "a-b" and logger._offline
    assert "wandb sync" in capsys.readouterr().out
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_login("api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key")
    assert has_login("api.wandb.ai")


def test_answers_needs_a_listener() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert not answers("127.0.0.1", port)
        server.listen()
        assert answers("127.0.0.1", port)
