"""Stands in for SNS: takes what is published, if AWS' own code signs it alike, and prints it.

usage: sns_stand_in.py ACCESS_KEY SECRET_KEY REGION

Prints its port, then a JSON object for each message.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ACCESS_KEY, SECRET_KEY, REGION = sys.argv[1:4]
NAMESPACE = "http://sns.amazonaws.com/doc/2010-03-31/"


def signature(headers, url, body):
    """What botocore signs a request with that has the signed headers of this one."""
    fields = dict(part.strip().split("=", 1) for part in
                  headers["Authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(","))
    scope = fields["Credential"].split("/")
    assert scope[0] == ACCESS_KEY and scope[2:] == [REGION, "sns", "aws4_request"], scope
    signed = fields["SignedHeaders"].split(";")
    assert {"host", "x-amz-date", "content-type"} <= set(signed), signed
    request = AWSRequest("POST", url, data=body,
                         headers={name: headers[name] for name in signed if name != "host"})
    request.context["timestamp"] = headers["X-Amz-Date"]
    auth = SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "sns", REGION)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return fields["Signature"], auth.signature(text, request)


class Topic(BaseHTTPRequestHandler):
    busy = 1

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told, wanted = signature(self.headers, f"http://{self.headers['Host']}{self.path}", body)
        if told != wanted:
            return self.answer(403, "SignatureDoesNotMatch")
        if Topic.busy:
            # As it does where too much is published.
            Topic.busy -= 1
            return self.answer(400, "Throttling")
        fields = {name: values[0] for name, values in parse_qs(body.decode(), strict_parsing=True).items()}
        print(json.dumps(fields), flush=True)
        self.answer(200, "")

    def answer(self, status, code):
        text = f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>"
        if status == 200:
            text = (f'<PublishResponse xmlns="{NAMESPACE}"><PublishResult><MessageId>1</MessageId>'
                    "</PublishResult></PublishResponse>")
        text = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def main():
    server = HTTPServer(("127.0.0.1", 0), Topic)
    print(server.server_port, flush=True)
    server.serve_forever()


main()
