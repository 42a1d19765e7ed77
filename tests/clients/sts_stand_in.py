"""An STS that answers GetCallerIdentity by the signatures of the principals that it is given.

usage: sts_stand_in.py PRINCIPALS
PRINCIPALS is JSON: {access key id: [secret, session token or null, ARN]}. Prints its port. Signatures
are computed anew by botocore, from what arrived. /asked says how often it was asked.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

PRINCIPALS = json.loads(sys.argv[1])
asked = 0


def signer(path, headers):
    """The ARN of who signed, or none."""
    query = dict(parse_qsl(urlsplit(path).query, keep_blank_values=True))
    signature = query.pop("X-Amz-Signature", "")
    key, date, region, service, _ = query.get("X-Amz-Credential", "////").split("/")
    if key not in PRINCIPALS or service != "sts" or query.get("Action") != "GetCallerIdentity":
        return None
    secret, token, arn = PRINCIPALS[key]
    if query.get("X-Amz-Security-Token") != token:
        return None
    names = query["X-Amz-SignedHeaders"].split(";")
    signed = {name: headers.get(name, "") for name in names}
    request = AWSRequest("GET", f"http://{headers['host']}/?{urlencode(query, quote_via=quote, safe='-_.~')}", headers=signed)
    request.context["timestamp"] = query["X-Amz-Date"]
    auth = SigV4QueryAuth(Credentials(key, secret, token), service, region)
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    return arn if expected == signature else None


class Sts(BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        if self.path == "/asked":
            return self.say(200, asked)
        asked += 1
        arn = signer(self.path, self.headers)
        if arn is None:
            return self.say(403, {"Error": {"Code": "SignatureDoesNotMatch"}})
        result = {"Account": arn.split(":")[4], "Arn": arn, "UserId": "AIDAEXAMPLE"}
        self.say(200, {"GetCallerIdentityResponse": {"GetCallerIdentityResult": result}})

    def say(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Sts)
print(server.server_address[1], flush=True)
server.serve_forever()
