"""Holds deploy/sagemaker against CloudFormation's and SageMaker's own models.

usage: check_sagemaker.py FOLDER; prints the environment of the single endpoint's container as JSON.
"""

import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys

import boto3
import botocore.session
import yaml
from botocore.response import StreamingBody
from botocore.stub import Stubber
from botocore.validate import validate_parameters

GIVEN = {
    "AWS::Partition": "aws", "AWS::Region": "eu-central-1", "AWS::AccountId": "123456789012",
    "Image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/roundhouse:0.1.0",
    "ModelsBucket": "bucket", "ModelsPrefix": "prefix",
}
ROLE = "arn:aws:iam::123456789012:role/roundhouse"
ARN = "arn:aws:sagemaker:eu-central-1:123456789012:"
FREE = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
"""Actions that IAM knows no resource of."""


class Template(yaml.SafeLoader):
    """Reads CloudFormation's short forms, with what is given put in."""


def given(name, template):
    if name in GIVEN:
        return GIVEN[name]
    parameter = template["Parameters"].get(name)
    return name if parameter is None else parameter["Default"]


def read(path):
    Template.add_multi_constructor("!", lambda loader, kind, node: {kind: loader.construct_scalar(node)})
    template = yaml.load(path.read_text(), Template)

    def filled(it):
        if isinstance(it, list):
            return [filled(one) for one in it]
        if not isinstance(it, dict):
            return it
        match it:
            case {"Ref": name}:
                return given(name, template)
            case {"GetAtt": "Role.Arn"}:
                return ROLE
            case {"GetAtt": name}:
                return name.split(".")[0]
            case {"Sub": text}:
                return re.sub(r"\$\{([^}]+)\}", lambda hit: given(hit[1], template), text)
        return {key: filled(value) for key, value in it.items()}

    return filled(template)["Resources"]


def check_calls(resources):
    """What CloudFormation will call is what SageMaker's model takes."""
    service = botocore.session.get_session().get_service_model("sagemaker")
    calls = {
        "CreateModel": resources["Model"]["Properties"] | {"ModelName": "Model"},
        "CreateEndpointConfig": resources["EndpointConfig"]["Properties"] | {"EndpointConfigName": "C"},
        "CreateEndpoint": resources["Endpoint"]["Properties"] | {"EndpointName": "E"},
    }
    for operation, parameters in calls.items():
        validate_parameters(parameters, service.operation_model(operation).input_shape)


def statements(resources):
    for name, resource in resources.items():
        properties = resource["Properties"]
        policies = [it["PolicyDocument"] for it in properties.get("Policies", [])]
        policies += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
        for policy in policies:
            yield from ((name, statement) for statement in policy["Statement"])


def check_least(resources):
    """No action on everything but those that know no resources, none with a wildcard, nothing written to S3."""
    seen = set()
    for name, statement in statements(resources):
        actions = statement["Action"]
        actions = {actions} if isinstance(actions, str) else set(actions)
        assert not any("*" in action for action in actions), (name, actions)
        if statement["Resource"] == "*":
            assert actions <= FREE, (name, actions)
        seen |= actions
    assert {action for action in seen if action.startswith("s3:")} == {"s3:GetObject", "s3:ListBucket"}
    objects = next(s for _, s in statements(resources) if s["Action"] == "s3:GetObject")
    assert objects["Resource"] == "arn:aws:s3:::bucket/prefix/*", objects
    token = next(s for _, s in statements(resources) if s["Action"] == "cloudwatch:PutMetricData")
    assert "cloudwatch:namespace" in token["Condition"]["StringLike"]


def script(folder):
    spec = importlib.util.spec_from_file_location("deploy", folder / "deploy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stubbed(service, answers):
    """A client whose calls are held against the service's model, in this order and no others."""
    client = boto3.client(service, "eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
    stub = Stubber(client)
    for operation, answer, expected in answers:
        stub.add_response(operation, answer, expected)
    stub.activate()
    return client, stub


def run(deploy, arguments, service, answers):
    client, stub = stubbed(service, answers)
    deploy.main(arguments, lambda name: {service: client}[name])
    stub.assert_no_pending_responses()


def check_script(deploy, resources, kind):
    """The script's calls are valid, and make what the template makes."""
    model = resources["Model"]["Properties"]["PrimaryContainer"]
    variant = dict(resources["EndpointConfig"]["Properties"]["ProductionVariants"][0], ModelName="name")
    described = {"EndpointName": "name", "EndpointArn": ARN + "endpoint/name", "EndpointConfigName": "name",
                 "EndpointStatus": "InService", "CreationTime": 0, "LastModifiedTime": 0}
    name = {"EndpointName": "name"}
    arguments = [kind, "name", "--image", GIVEN["Image"], "--role", ROLE, "--models", "s3://bucket/prefix/"]
    run(deploy, arguments, "sagemaker", [
        ("create_model", {"ModelArn": ARN + "model/name"},
         {"ModelName": "name", "ExecutionRoleArn": ROLE, "PrimaryContainer": model}),
        ("create_endpoint_config", {"EndpointConfigArn": ARN + "endpoint-config/name"},
         {"EndpointConfigName": "name", "ProductionVariants": [variant]}),
        ("create_endpoint", {"EndpointArn": ARN + "endpoint/name"}, name | {"EndpointConfigName": "name"}),
        ("describe_endpoint", described, name),
    ])


def check_invocations(deploy):
    answer = lambda: {"Body": StreamingBody(io.BytesIO(b"{}"), 2), "ContentType": "application/json"}
    common = {"EndpointName": "name", "ContentType": "application/json", "Body": "{}"}
    arguments = ["invoke", "name", "--target", "a/b", "--body", "{}"]
    for more, named in (([], {"TargetModel": "a/b"}), (["--attribute"], {"CustomAttributes": "target-model=a/b"})):
        run(deploy, arguments + more, "sagemaker-runtime", [("invoke_endpoint", answer(), common | named)])


def check_deletion(deploy):
    client, stub = stubbed("sagemaker", [("delete_endpoint", {}, {"EndpointName": "name"})])
    stub.add_client_error("describe_endpoint", "ValidationException", "Could not find endpoint")
    stub.add_response("delete_endpoint_config", {}, {"EndpointConfigName": "name"})
    stub.add_response("delete_model", {}, {"ModelName": "name"})
    deploy.main(["delete", "name"], lambda _: client)
    stub.assert_no_pending_responses()


def main():
    folder = pathlib.Path(sys.argv[1])
    templates = {"multi-model": folder / "multi-model.yaml", "single": folder / "single.yaml"}
    lint = pathlib.Path(sys.executable).with_name("cfn-lint")
    subprocess.run([lint, "--non-zero-exit-code", "informational", *templates.values()], check=True)
    deploy = script(folder)
    deploy.print = lambda *_: None
    for kind, path in templates.items():
        resources = read(path)
        check_calls(resources)
        check_least(resources)
        check_script(deploy, resources, kind)
    check_invocations(deploy)
    check_deletion(deploy)
    print(json.dumps(resources["Model"]["Properties"]["PrimaryContainer"]["Environment"]))


main()
