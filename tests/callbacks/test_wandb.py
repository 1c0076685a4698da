from sami.callbacks.wandb import has_login, wandb_logger


def test_wandb_without_login_goes_offline(tmp_path, monkeypatch, capsys) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    logger = wandb_logger(project="p", name="a/b", folder=str(tmp_path / "run"))
    assert logger._wandb_init["id"] == "a-b" and logger._offline
    assert "wandb sync" in capsys.readouterr().out


def test_what_counts_as_a_login(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for text, expected in (
        (None, False),
        ("machine api.wandb.ai login user password key", True),
        ("machine other.org login api.wandb.ai password key", False),
        ("no netrc at all", False),
    ):
        if text:
            (tmp_path / "netrc").write_text(text)
        assert has_login("api.wandb.ai") == expected, text
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_login("api.wandb.ai")
