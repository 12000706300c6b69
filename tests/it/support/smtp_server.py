"""A mail server that keeps what it takes, and misbehaves when told to.

    smtp_server.py FOLDER PORT plain|starttls|tls [CERTIFICATE KEY [USER PASSWORD]]

Each mail becomes FOLDER/mail-N.json. FOLDER/mode, read anew for each command, says how to behave:
    ok                    takes everything
    slow SECONDS          keeps the mail, and answers that late
    rcpt CODE [ADDRESS]   refuses recipients (or that one) with CODE
    data CODE             refuses the mail itself with CODE
    die                   keeps the mail, and ends before it answers, as a machine does that lost its power
"""

import asyncio
import email
import email.policy
import json
import os
import signal
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

folder, port, security = sys.argv[1], int(sys.argv[2]), sys.argv[3]
certificate = sys.argv[4:6]
login = [text.encode() for text in sys.argv[6:8]]


def mode():
    try:
        with open(os.path.join(folder, "mode")) as file:
            return file.read().split()
    except FileNotFoundError:
        return ["ok"]


def keep(envelope, session, encrypted):
    parsed = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
    part = lambda kind: next((p.get_content() for p in parsed.walk() if p.get_content_type() == kind), None)
    number = len([name for name in os.listdir(folder) if name.startswith("mail-")]) + 1
    mail = {
        "from": envelope.mail_from,
        "to": envelope.rcpt_tos,
        "headers": [[name, str(value)] for name, value in parsed.items()],
        "text": part("text/plain"),
        "html": part("text/html"),
        "raw": envelope.original_content.decode("utf-8", "replace"),
        "encrypted": encrypted,
        "login": session.auth_data.decode() if session.auth_data else None,
    }
    path = os.path.join(folder, f"mail-{number}.json")
    with open(path + ".new", "w") as file:
        json.dump(mail, file)
    os.rename(path + ".new", path)


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        match mode():
            case ["rcpt", code]:
                return f"{code} not now, or not here"
            case ["rcpt", code, only] if only == address:
                return f"{code} no such mailbox: {address}"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        now = mode()
        if now[0] == "data":
            return f"{now[1]} not this one"
        keep(envelope, session, security == "tls" or session.ssl is not None)
        if now[0] == "slow":
            await asyncio.sleep(float(now[1]))
        if now[0] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return "250 kept"


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and [data.login, data.password] == login
    # Not handled: the server is to say so.
    return AuthResult(success=good, handled=False, auth_data=data.login if good else None)


def protocol():
    return SMTP(
        Handler(),
        hostname="mail.test",
        loop=asyncio.get_running_loop(),
        tls_context=context if security == "starttls" else None,
        require_starttls=security == "starttls",
        auth_required=bool(login),
        auth_require_tls=security == "starttls",
        authenticator=authenticate if login else None,
    )


async def main():
    server = await asyncio.get_running_loop().create_server(
        protocol, "127.0.0.1", port, ssl=context if security == "tls" else None
    )
    print("listening", flush=True)
    await server.serve_forever()


context = None
if security != "plain":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
asyncio.run(main())
