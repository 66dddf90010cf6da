"""The environment variables that a child process inherits."""

from __future__ import annotations

import pytest

from imbrace_cli.processes import inherited_environment

NEEDED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "PYTHONUTF8",
    "SSL_CERT_FILE",
)
SECRET = (
    "IMBRACE_TOKEN", "IMBRACE_PHONE_KEY", "IMBRACE_LAKE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_API_KEY", "GCP_KEY", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CONNECTION_STRING", "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_PASSWORD", "GITHUB_TOKEN", "GH_TOKEN", "NPM_TOKEN",
    "OPENAI_API_KEY", "DATABASE_URL", "PGPASSWORD", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "SSH_AUTH_SOCK",
    "PYTHON_KEYRING_PASSWORD", "PIP_INDEX_URL", "HF_TOKEN", "DOCKER_AUTH_CONFIG", "KUBECONFIG",
    "PATH_TO_SECRET", "LC_SECRET_1", "MY_OWN_PASSWORD",
)  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_variables_that_a_process_needs_are_inherited(name: str) -> None:
    assert inherited_environment({name: "value"}) == {name: "value"}


@pytest.mark.parametrize("name", SECRET)
def test_variables_that_may_be_secret_are_not_inherited(name: str) -> None:
    assert inherited_environment({name: "value", "PATH": "/bin"}) == {"PATH": "/bin"}


def test_the_variables_of_this_process_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Taipei")
    monkeypatch.setenv("IMBRACE_TOKEN", "api_secret")

    inherited = inherited_environment()

    assert inherited["TZ"] == "Asia/Taipei"
    assert "IMBRACE_TOKEN" not in inherited
