"""The `context` argument, with the methods that multi-model-server's has.

Each call has its own, so that a thread a handler left behind cannot speak for a later one.
`idx` is an index into a batch; calls are not batched, so it is ignored.
"""


class Metrics:
    """Takes any metric and forgets it: the server measures handlers from outside."""

    def __getattr__(self, name):
        return lambda *_, **__: None


class Context:
    """What a handler may learn of a call, and say about its answer."""

    manifest = None
    metrics = Metrics()

    def __init__(self, model_name, properties, number, streams, route, meta):
        self.model_name = model_name
        self.system_properties = properties
        self.client_takes_stream = streams
        self.status, self.phrase = 200, None
        self._number, self._route, self._meta, self._read = number, route, meta, None
        self._headers = {}

    def _request(self):
        if self._read is None:
            self._read = {}
            if self._meta:
                from roundhouse_route import parsed
                self._read = parsed(self._meta.decode("utf-8", "replace"))
            headers = self._read["headers"] = dict(self._read.get("headers") or {})
            present = {name.lower() for name in headers}
            for name, value in (("Content-Type", self._route.content_type), ("Accept", self._route.given)):
                if value and name.lower() not in present:
                    headers[name] = value
        return self._read

    @property
    def request_processor(self):
        return [self]

    @property
    def request_ids(self):
        return {0: self.get_request_id()}

    @property
    def custom_attributes(self):
        """The call's X-Amzn-SageMaker-Custom-Attributes; None when it has none."""
        return self._request().get("custom_attributes")

    def get_request_id(self, idx=0):
        return self._request().get("request_id") or str(self._number)

    def get_request_header(self, idx, key):
        """Returns a header of the call, its case ignored; None when absent."""
        return self.get_request_property(key)

    def get_all_request_header(self, idx=0):
        return self._request()["headers"]

    def get_request_properties(self):
        return self._request()["headers"]

    def get_request_property(self, key):
        headers = self._request()["headers"]
        if key in headers:
            return headers[key]
        wanted = key.lower()
        return next((value for name, value in headers.items() if name.lower() == wanted), None)

    def set_response_content_type(self, idx, value):
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx=0):
        return self._headers.get("content-type")

    def set_response_header(self, idx, key, value):
        """Sets a header of the answer. Raises ValueError for what cannot stand in one."""
        key, value = str(key).lower(), str(value)
        if not key.isascii() or not key.replace("-", "").replace("_", "").isalnum():
            raise ValueError("{!a} is not the name of a header".format(key))
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError("the value of header {} has a line break".format(key))
        self._headers[key] = value

    def get_response_headers(self, idx=0):
        return self._headers

    def add_response_property(self, key, value):
        self.set_response_header(0, key, value)

    def set_response_status(self, code=200, phrase="", idx=0):
        """Sets the answer's status. Raises ValueError for a number that is none."""
        code = int(code)
        if not 200 <= code <= 599:
            raise ValueError("{} is not the status of an answer".format(code))
        self.status, self.phrase = code, phrase

    def set_all_response_status(self, code=200, phrase=""):
        self.set_response_status(code, phrase)

    def report_status(self, code, reason_phrase=None):
        self.set_response_status(code, reason_phrase)

    def get_response_status(self, idx=0):
        return self.status, self.phrase

    def response_meta(self):
        """Returns the response headers as a frame's JSON; empty when there are none."""
        headers = {name: value for name, value in self._headers.items() if name != "content-type"}
        if not headers:
            return b""
        import json
        return json.dumps({"headers": headers}).encode()
