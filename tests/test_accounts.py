"""Accounts, with a provider of OpenID Connect of our own: who gets in, who may do what, and what is no token."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.phantom import SMALL, write_phantoms

PASSWORD = "correct horse"
ROLES = {
    "ada": ["monailabel-user", "monailabel-annotator", "monailabel-admin"],
    "ann": ["monailabel-user", "monailabel-annotator"],
    "eve": ["monailabel-user"],
    "nil": [],
}


class Provider:
    """Knows four people, and signs for them; `down` makes it answer nothing of use."""

    def __init__(self) -> None:
        self.key, self.down = rsa.generate_private_key(public_exponent=65537, key_size=2048), False
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/realm/.well-known/openid-configuration":
                    self.tell(200, {"jwks_uri": f"{provider.realm}/keys", "token_endpoint": f"{provider.realm}/token"})
                elif self.path == "/realm/keys":
                    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(provider.key.public_key()))
                    self.tell(200, {"keys": [{**public, "kid": "one", "use": "sig", "alg": "RS256"}]})
                else:
                    self.tell(404, {})

            def do_POST(self) -> None:
                asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                name, password = asked["username"][0], asked["password"][0]
                if name not in ROLES or password != PASSWORD:
                    self.tell(401, {"error": "invalid_grant"})
                else:
                    self.tell(200, {"access_token": provider.token(name), "token_type": "Bearer", "expires_in": 300})

            def tell(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(503 if provider.down else status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/realm"

    def token(
        self,
        name: str,
        *,
        key: Any = None,
        algorithm: str = "RS256",
        seconds: float = 300,
        more: dict[str, Any] | None = None,
    ) -> str:
        claims = {"preferred_username": name, "realm_access": {"roles": ROLES[name]}, "exp": time.time() + seconds}
        signing = self.key if key is None else key
        return jwt.encode(claims | (more or {}), signing, algorithm, headers={"kid": "one"})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(
    provider: Provider, tmp_path_factory: pytest.TempPathFactory, live_server: Callable[..., Any]
) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("accounts")
    write_phantoms(root, patients=3, seed=1, shape=SMALL)
    accounts = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": provider.realm}
    conf = {"retrain": "false", "strategy": "random", "slices_per_ticket": "1", "budget": "12"}
    running = live_server(root, conf, env=accounts, ready="/auth/")
    try:
        yield running.start()
    finally:
        running.stop()


def signed_in(server: Any, provider: Provider, name: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {provider.token(name)}"})


def sign_in(http: httpx.Client, name: str, password: str = PASSWORD) -> httpx.Response:
    return http.post("/auth/token", data={"username": name, "password": password})


def test_nobody_gets_in_without_a_token(server: Any) -> None:
    with server.client() as http:
        assert http.get("/auth/").json()["enabled"] is True
        for path in ("/al/progress", "/al/worklist", "/datastore/", "/info/", "/al/events"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["detail"]) == (401, "Please sign in.")
            assert answer.headers["www-authenticate"] == "Bearer"
        wrong = sign_in(http, "ann", "battery staple")
        assert (wrong.status_code, wrong.json()["detail"]) == (401, "The name or the password is wrong.")
        assert not http.cookies


def test_a_token_is_for_the_header_and_a_cookie_for_the_browser(server: Any) -> None:
    with server.client() as http:
        answer = sign_in(http, "ann")
        assert answer.status_code == 200, answer.text
        told = answer.headers["set-cookie"].lower()
        assert "httponly" in told
        assert "samesite=strict" in told
        assert http.get("/al/progress").status_code == 200, "by the cookie"
        assert http.get("/auth/token/valid").json()["username"] == "ann"
        assert http.delete("/auth/token").status_code == 204
        assert http.get("/al/progress").status_code == 401
        header = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert http.get("/al/progress", headers=header).status_code == 200


def test_roles_say_who_may_do_what(server: Any, provider: Provider) -> None:
    with signed_in(server, provider, "nil") as nil, signed_in(server, provider, "eve") as eve:
        assert nil.get("/al/progress").status_code == 403
        assert eve.get("/al/progress").status_code == 200
        refused = eve.post("/al/items/patient001/skip", json={"slices": [0], "reason": "none of hers"})
        assert refused.status_code == 403
        assert "eve has not the role monailabel-annotator" in refused.json()["detail"]
    with signed_in(server, provider, "ann") as ann, signed_in(server, provider, "ada") as ada:
        assert ann.delete("/train/").status_code == 403
        assert ada.delete("/train/").status_code == 200
        assert ann.post("/scoring/random", params={"run_sync": True}).status_code == 200


def test_the_account_is_the_annotator_whatever_the_client_says(server: Any, provider: Provider) -> None:
    with signed_in(server, provider, "ann") as ann, signed_in(server, provider, "ada") as ada:
        (ticket,) = ann.post("/al/ask", json={"annotator": "ada"}).json()["tickets"]
        assert ann.get(f"/al/tickets/{ticket['ticket']}").json()["annotator"] == "ann"
        (other,) = ada.post("/al/ask", json={"annotator": "ann"}).json()["tickets"]
        assert (other["image"], other["slices"]) != (ticket["image"], ticket["slices"])


def test_what_is_no_token(server: Any, provider: Provider) -> None:
    public = provider.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    # PyJWT itself refuses to sign with a public key as a password, so that is put together by hand.
    head, claims, _ = provider.token("ada").split(".")
    wrong = [
        "x", "a.b.c", f"{head}.{claims}.", f"{head}.{claims}.AAAA", provider.token("ada", seconds=-60),
        provider.token("ada", key=stranger), provider.token("ada", key="", algorithm="none"), confused(public, claims),
    ]  # fmt: skip
    with server.client() as http:
        for token in wrong:
            answer = http.get("/al/progress", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401, token
            assert "sign in" in answer.json()["detail"]


def test_claims_of_another_kind_than_text_are_left_out(server: Any, provider: Provider) -> None:
    token = provider.token("ann", more={"email": ["a", "b"], "name": 7})
    with server.client() as http:
        found = http.get("/auth/token/valid", headers={"Authorization": f"Bearer {token}"})
    assert found.status_code == 200
    assert (found.json()["username"], found.json()["email"], found.json()["name"]) == ("ann", None, None)


def confused(public: bytes, claims: str) -> str:
    """A token signed with the provider's public key as if it were a shared password."""
    import base64
    import hashlib
    import hmac

    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode()).rstrip(b"=")
    signed = head + b"." + claims.encode()
    return (signed + b"." + base64.urlsafe_b64encode(hmac.digest(public, signed, hashlib.sha256)).rstrip(b"=")).decode()


def test_a_provider_that_is_down_keeps_out_whom_it_must_vouch_for_and_nobody_else(
    server: Any, provider: Provider
) -> None:
    with signed_in(server, provider, "ann") as ann, server.client() as http:
        assert ann.get("/al/progress").status_code == 200
        provider.down = True
        try:
            assert ann.get("/al/progress").status_code == 200, "its keys are known"
            answer = sign_in(http, "ann")
            assert answer.status_code == 503
            assert provider.realm in answer.json()["detail"]
        finally:
            provider.down = False
        assert sign_in(http, "ann").status_code == 200


def test_pages_ask_to_sign_in_and_then_show_and_open(server: Any, chromium: ModuleType) -> None:
    from selenium.webdriver.common.keys import Keys

    def field(driver: Any) -> Any:
        return driver.find_elements("css selector", "dialog[open] input")

    def cards(driver: Any) -> Any:
        return driver.find_elements("css selector", ".card[data-state=open] [data-does=annotate]")

    with chromium.browser() as driver:
        driver.get(server.url + "/worklist")
        for password in ("wrong", PASSWORD):
            for text in ("ann", password):
                chromium.wait(driver, "a question", lambda: field(driver))[0].send_keys(text, Keys.ENTER)
        first = chromium.wait(driver, "the cards", lambda: cards(driver))[0]
        first.send_keys(Keys.ENTER)
        chromium.wait(driver, "a name or the page", lambda: field(driver) or "/annotate/" in driver.current_url)
        if field(driver):
            field(driver)[0].send_keys("whoever", Keys.ENTER)
        chromium.wait(driver, "the annotate page", lambda: "/annotate/" in driver.current_url)
        chromium.wait(
            driver, "an open ticket", lambda: driver.execute_script("return document.body.dataset.state") == "open"
        )
        # A new tab has no token of its own; the cookie lets it in.
        driver.switch_to.new_window("tab")
        driver.get(server.url + "/")
        chromium.wait(driver, "a live page", lambda: chromium.text_of(driver, "live") == "Live")
        chromium.wait(driver, "the counts", lambda: chromium.text_of(driver, "pool"))
        assert not field(driver)
        # Signed out, the annotate page says so, and where to sign in.
        driver.delete_all_cookies()
        driver.get(server.url + "/annotate/next")
        chromium.wait(driver, "the way in", lambda: "Sign in" in chromium.text_of(driver, "message"))
