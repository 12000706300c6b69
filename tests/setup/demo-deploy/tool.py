"""The small parts of demo-deploy.sh: a client that asks all the while, what it saw, and reading of mails and JSON.

    tool.py ports N                free ports of this machine
    tool.py ask URL FILE           asks 50 times a second until TERM; a line of FILE: when, milliseconds, answer
    tool.py report FILE PHASES     requests and failures of each phase; a line of PHASES: when, and its name
    tool.py rollback FILE DEPLOY WORD
                                   times of a deploy that was rolled back (JSON), whose version answered WORD, and what it
                                   cost the client
    tool.py mail FILE              a mail, shortened
    tool.py find FILE PATTERN      the first match in a mail's text
    tool.py instance DATABASE      the name by which the engine knows what a daemon made
    tool.py json KEY...            a value of the JSON on stdin; a KEY is a name, a number, or NAME=VALUE in a list
"""

import signal

# Ctrl-C ends it without a word; what it was part of says what there is to say.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import collections
import datetime
import http.client
import json
import re
import socket
import sqlite3
import sys
import threading
import time
import urllib.parse

EVERY = 1 / 50


def one(host, port, path):
    """The answer's first word, or what went wrong."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace").strip()
        return body if answer.status == 200 else f"failed: status {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"failed: {type(error).__name__}"
    finally:
        connection.close()


def asking(url, until, told):
    """Each request on a thread of its own, so that a slow one holds up nobody."""
    where = urllib.parse.urlsplit(url)
    lock = threading.Lock()

    def ask():
        began = time.time()
        answer = one(where.hostname, where.port, where.path or "/")
        with lock:
            told(began, (time.time() - began) * 1000, answer)

    next_one = time.monotonic()
    threads = []
    while not until():
        thread = threading.Thread(target=ask)
        thread.start()
        threads = [other for other in threads if other.is_alive()] + [thread]
        next_one += EVERY
        time.sleep(max(0, next_one - time.monotonic()))
    for thread in threads:
        thread.join()


def ask(url, file):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with open(file, "w", buffering=1) as out:
        asking(url, stop.is_set, lambda at, ms, answer: out.write(f"{at:.3f} {ms:.1f} {answer}\n"))


def asked(file):
    """What the client wrote; its last line may be half there."""
    with open(file) as lines:
        for line in lines:
            parts = line.rstrip("\n").split(" ", 2)
            if line.endswith("\n") and len(parts) == 3:
                yield float(parts[0]), float(parts[1]), parts[2]


def report(file, phases):
    with open(phases) as lines:
        names = [(float(at), name) for at, name in (line.rstrip("\n").split(" ", 1) for line in lines)]
    table = [[name, 0, 0, 0.0, collections.Counter()] for _, name in names]
    for at, ms, answer in asked(file):
        phase = sum(1 for began, _ in names if began <= at) - 1
        if phase < 0:
            continue
        row = table[phase]
        failed = answer.startswith("failed: ")
        row[1] += 1
        row[2] += failed
        row[3] = max(row[3], ms)
        row[4][answer.removeprefix("failed: ") if failed else f"`{answer}`"] += 1
    print(f"  {'PHASE':50} {'REQUESTS':>8} {'FAILED':>6} {'SLOWEST':>8}  ANSWERS")
    for name, count, failed, slowest, answers in table:
        words = ", ".join(f"{times} {answer}" for answer, times in answers.most_common(4))
        print(f"  {name:50} {count:8} {failed:6} {slowest:5.0f} ms  {words}")


def seconds(text):
    """Of a time as the API writes it, with up to nine digits behind the point."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", text.replace("Z", "+00:00"))
    return datetime.datetime.fromisoformat(text).timestamp()


def rollback(file, deploy, word):
    with open(deploy) as text:
        deploy = json.load(text)
    bad, back = (seconds(deploy[name]) for name in ("bad_at", "put_back_at"))
    answers = list(asked(file))
    first = next(at for at, _, answer in answers if answer == word)
    failures = [at for at, _, answer in answers if answer.startswith("failed") and at >= first]
    rows = [("from detected until the old release is whole", f"{back - bad:6.1f} s")]
    if failures:
        rows = [
            ("it answers well for", f"{failures[0] - first:6.1f} s"),
            ("from the first failed request until detected", f"{bad - failures[0]:6.1f} s"),
            ("from detected until the last failed request", f"{failures[-1] - bad:6.1f} s"),
            *rows,
        ]
    rows.append(("requests that failed", f"{len(failures):6}"))
    for name, figure in rows:
        print(f"  {name:48}{figure}")


def mail_text(file):
    with open(file) as text:
        return json.load(text)


def mail(file):
    mail = mail_text(file)
    headers = dict(mail["headers"])
    lines = [f"To: {headers['To']}", f"Subject: {headers['Subject']}", ""]
    text = mail["text"].strip().splitlines()
    lines += text[:24]
    if len(text) > 24:
        lines.append(f"... and {len(text) - 24} more lines")
    print("\n".join("  | " + (line if len(line) <= 110 else line[:107] + "...") for line in lines))


def find(file, pattern):
    found = re.search(pattern, mail_text(file)["text"], re.MULTILINE)
    if not found:
        sys.exit(1)
    print(found.group(0).strip())


def value(keys):
    here = json.load(sys.stdin)
    for key in keys:
        if isinstance(here, list):
            name, _, wanted = key.partition("=")
            here = here[int(key)] if not wanted else next((one for one in here if str(one.get(name)) == wanted), None)
        else:
            here = here.get(key)
        if here is None:
            sys.exit(1)
    print(here if isinstance(here, str) else json.dumps(here))


def instance(database):
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        print(*store.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone())


def ports(count):
    # Held until all are known, so that they differ.
    sockets = [socket.socket() for _ in range(int(count))]
    for one_of_them in sockets:
        one_of_them.bind(("0.0.0.0", 0))
    print(*(one_of_them.getsockname()[1] for one_of_them in sockets))


match sys.argv[1:]:
    case ["ports", count]:
        ports(count)
    case ["ask", url, file]:
        ask(url, file)
    case ["report", file, phases]:
        report(file, phases)
    case ["rollback", file, deploy, word]:
        rollback(file, deploy, word)
    case ["mail", file]:
        mail(file)
    case ["find", file, pattern]:
        find(file, pattern)
    case ["instance", database]:
        instance(database)
    case ["json", *keys]:
        try:
            value(keys)
        except (ValueError, IndexError):
            sys.exit(1)
    case _:
        sys.exit(__doc__)
