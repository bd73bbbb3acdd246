"""One call to an OpenAI-compatible /chat/completions, with nothing but the standard library."""
from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import parsedate_to_datetime

from slm.errors import UserError

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
REFUSED = {401: "refuses the key", 403: "refuses this key or model", 404: "has no such path or "
           "model", 405: "takes no POST there: should the URL end in /v1?"}
LONGEST_WAIT_SEC = 60.0
MOST_BYTES = 1 << 20
LOCAL = ("localhost", "127.0.0.1", "::1")


class NoAnswer(Exception):
    """No reply to this one request, after all retries; the line says why."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to wherever an answer points."""

    def redirect_request(self, *_args) -> None:
        return None


class Endpoint:
    """A chat model behind a URL. Raises UserError for settings that make no sense."""

    def __init__(self, base_url: str, model: str, key_env: str = "OPENAI_API_KEY",
                 temperature: float | None = None, json_mode: bool = True,
                 timeout_sec: float = 60.0, retries: int = 4, backoff_sec: float = 1.0) -> None:
        try:
            url = urllib.parse.urlsplit(base_url)
            sound = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            sound = False
        if not sound or url.username is not None:
            raise UserError("base_url: should be http(s)://host[:port]/v1, without a key in it")
        if not model:
            raise UserError("model: name one that the endpoint has")
        if not timeout_sec > 0 or retries < 0:
            raise UserError(f"timeout_sec={timeout_sec} should be above 0 and retries={retries} 0 "
                            "or more")
        path = url.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.url = urllib.parse.urlunsplit((url.scheme, url.netloc, path, url.query, ""))
        self.host, self.key_env = url.netloc, key_env
        self.key = os.environ.get(key_env, "").strip()
        if not all("!" <= c <= "~" for c in self.key):   # http.client would print it in its error
            raise UserError(f"{key_env}: holds characters that no key has")
        self.model, self.temperature, self.json_mode = model, temperature, json_mode
        self.timeout_sec, self.retries, self.backoff_sec = timeout_sec, retries, backoff_sec
        self.opener = urllib.request.build_opener(NoRedirect)
        if self.key and url.scheme == "http" and url.hostname not in LOCAL:
            print(f"warning: {key_env} travels unencrypted to {self.host}", file=sys.stderr)

    def __str__(self) -> str:
        return f"{self.model} at {self.host}"

    def ask(self, messages: list[dict[str, str]]) -> str:
        """The text of the model's reply. Raises NoAnswer, or UserError where no request of this
        kind can succeed (key, path or model refused)."""
        body = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.json_mode:
            body["response_format"] = {"type": "json_object"}
        for attempt in range(self.retries + 1):
            try:
                return content_of(self.private(self.post(body).decode("utf-8", "replace")))
            except urllib.error.HTTPError as e:
                with e:
                    why, wait = self.refusal(e), retry_after(e.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as e:      # URLError and timeouts too
                why = f"no connection ({self.private(str(getattr(e, 'reason', e)) or repr(e))})"
                wait = None
            if attempt < self.retries:
                pause = self.backoff_sec * 2 ** attempt * random.uniform(0.8, 1.2)
                time.sleep(min(LONGEST_WAIT_SEC, pause if wait is None else wait))
        raise NoAnswer(f"no answer after {self.retries + 1} tries: {why}")

    def post(self, body: dict) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "slm"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        end, parts, size = time.monotonic() + self.timeout_sec, [], 0
        with self.opener.open(request, timeout=self.timeout_sec) as answer:
            while part := answer.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if time.monotonic() > end:           # the socket's limit is for each read alone
                    raise TimeoutError("timed out")
                if size > MOST_BYTES:
                    raise NoAnswer("an answer of more than a megabyte")
            if answer.length:
                raise http.client.IncompleteRead(b"".join(parts), answer.length)
        return b"".join(parts)

    def refusal(self, error: urllib.error.HTTPError) -> str:
        """Why a request failed that may be tried again. Raises NoAnswer or UserError otherwise."""
        try:
            said = " ".join(error.read(2000).decode("utf-8", "replace").split())
        except (OSError, http.client.HTTPException):
            said = ""
        line = self.private(f"HTTP {error.code} {said[:200]}".strip())
        if error.code in AGAIN:
            return line
        if error.code in REFUSED or 300 <= error.code < 400:
            why = REFUSED.get(error.code, "points elsewhere: give the final URL")
            hint = f" ({self.key_env} is not set)" if error.code == 401 and not self.key else ""
            raise UserError(f"{self} {why}{hint}: {line}")
        raise NoAnswer(line)

    def private(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def content_of(raw: str) -> str:
    """The reply in an answer's body. Raises NoAnswer for a body of another shape."""
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise NoAnswer(f"not the body of a chat completion: {raw[:200]!r}") from None
    if not isinstance(content, str):
        raise NoAnswer(f"a reply without text ({content!r:.50})")
    return content


def retry_after(header: str | None) -> float | None:
    """Seconds to wait, from seconds or a date; None where the header says nothing."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
