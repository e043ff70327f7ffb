"""`fintune data filings` against an EDGAR of our own on this machine."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from fintune.data.documents.reading import documents
from fintune.data.raw.filings import fetch_filings
from fintune.errors import ConfigError

NUMBER = "0000000123-26-000001"
RECENT = {
    "accessionNumber": [NUMBER],
    "filingDate": ["2026-02-01"],
    "reportDate": ["2025-12-31"],
    "acceptanceDateTime": ["2026-02-01T16:00:00.000Z"],
    "act": ["34"],
    "form": ["8-K"],
    "fileNumber": ["1"],
    "filmNumber": ["1"],
    "items": ["2.02"],
    "core_type": ["8-K"],
    "size": [1000],
    "isXBRL": [0],
    "isInlineXBRL": [0],
    "primaryDocument": ["acme.htm"],
    "primaryDocDescription": ["8-K"],
}
NOWHERE = {
    key: ""
    for key in ("street1", "street2", "city", "stateOrCountry", "zipCode", "stateOrCountryDescription")
}
TEXTS = (
    "ein description website investorWebsite category fiscalYearEnd stateOfIncorporation phone flags sic "
    "sicDescription stateOfIncorporationDescription entityType"
)
COMPANY = {
    **dict.fromkeys(TEXTS.split(), ""),
    "cik": "123",
    "insiderTransactionForOwnerExists": 0,
    "insiderTransactionForIssuerExists": 0,
    "name": "Acme Corp",
    "tickers": ["ACME"],
    "exchanges": ["NYSE"],
    "addresses": {"mailing": NOWHERE, "business": NOWHERE},
    "formerNames": [],
    "filings": {"recent": RECENT, "files": []},
}
PARTS = [
    ("8-K", "acme.htm", "<html><p>Acme met on Monday.</p></html>"),
    ("EX-99.1", "release.htm", "<html><p>Sales rose to $5 million.</p></html>"),
    ("GRAPHIC", "logo.jpg", "begin 644 logo.jpg\nend"),
]
SUBMISSION = f"""<SEC-DOCUMENT>{NUMBER}.txt : 20260201
<SEC-HEADER>{NUMBER}.hdr.sgml : 20260201
ACCESSION NUMBER:\t\t{NUMBER}
CONFORMED SUBMISSION TYPE:\t8-K
PUBLIC DOCUMENT COUNT:\t\t3
FILED AS OF DATE:\t\t20260201
</SEC-HEADER>
""" + "".join(
    f"<DOCUMENT>\n<TYPE>{kind}\n<SEQUENCE>{i}\n<FILENAME>{name}\n<DESCRIPTION>{kind}\n<TEXT>\n{body}\n</TEXT>\n"
    "</DOCUMENT>\n"
    for i, (kind, name, body) in enumerate(PARTS, 1)
)
TICKERS = {"fields": [], "data": []}


@pytest.fixture
def edgar():
    """The address of a small EDGAR, and the (path, User-Agent) of what was asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["User-Agent"]))
            pages = {
                "company_tickers.json": json.dumps(
                    {"0": {"cik_str": 123, "ticker": "ACME", "title": "Acme Corp"}}
                ),
                "company_tickers_mf.json": json.dumps(TICKERS),
                "CIK0000000123.json": json.dumps(COMPANY),
                f"{NUMBER}.txt": SUBMISSION,
            }
            body = pages.get(self.path.rpartition("/")[2], "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def run(url, folder, *args):
    environment = {
        **os.environ,
        "EDGAR_BASE_URL": url,
        "EDGAR_DATA_URL": url,
        "EDGAR_LOCAL_DATA_DIR": str(folder / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("EDGAR_IDENTITY", None)
    (folder / "cache").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "fintune.cli", "data", "filings", *args, "--output_dir", "filings"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.slow
def test_a_filing_and_its_exhibits_are_saved_for_document_and_asked_for_once(edgar, tmp_path):
    pytest.importorskip("edgar", reason="edgartools is not installed: pip install -e '.[filings]'")
    url, asked = edgar
    args = ("acme", "--form", "8-k", "--identity", "Ann Smith ann@example.com")
    done = run(url, tmp_path, *args)
    assert done.returncode == 0, done.stderr
    names = ["ACME-8-K-2026-02-01-EX-99.1.htm", "ACME-8-K-2026-02-01.htm"]
    assert [document.name for document in documents(tmp_path / "filings")] == names
    assert {agent for _, agent in asked} == {"Ann Smith ann@example.com"}
    first = len(asked)
    assert run(url, tmp_path, *args).returncode == 0
    assert not any(NUMBER in path for path, _ in asked[first:])  # the filing itself is in the cache
    done = run(url, tmp_path, "acme", "--form", "10-Q", *args[3:])
    assert done.returncode != 0 and "has no 10-Q of acme" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("ACME",), "SEC asks who downloads, and there is no name and e-mail"),
        (("ACME", "10-K", 1, "Ann"), "«Ann» has no name and e-mail"),
        (("../x", "10-K", 1, "Ann a@b.org"), "is not a ticker"),
        (("ACME", "10-K\n", 1, "Ann a@b.org"), "is not a form"),
        (("ACME", "10-K", 0, "Ann a@b.org"), "--count must be from 1 to 100, got 0"),
    ],
)
def test_mistakes_are_refused_before_anything_is_asked(monkeypatch, args, why):
    monkeypatch.delenv("EDGAR_IDENTITY", raising=False)
    with pytest.raises(ConfigError, match=why):
        next(fetch_filings(*args))
