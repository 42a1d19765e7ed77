"""Makes, asks and deletes SageMaker endpoints of Roundhouse; needs boto3 and credentials.

  deploy.py multi-model NAME --image IMAGE --role ARN --models s3://bucket/prefix/
  deploy.py single      NAME --image IMAGE --role ARN --models s3://bucket/prefix/
  deploy.py invoke      NAME --target team-a/chat.tar.gz --body '{"inputs": "hello"}' [--attribute]
  deploy.py delete      NAME

multi-model: SageMaker fetches models and has the container load them; requests say TargetModel.
single: Roundhouse does both, given the prefix; requests say it in CustomAttributes (--attribute).
The role is that of multi-model.yaml or single.yaml, which make the same in CloudFormation.
"""

import argparse
import sys

VARIANT = "AllTraffic"


def container(args):
    """The container's definition, as CreateModel takes it."""
    common = {"Image": args.image}
    if args.command == "multi-model":
        return common | {
            "Mode": "MultiModel",
            "ModelDataUrl": args.models,
            "MultiModelConfig": {"ModelCacheSetting": "Enabled"},
            "Environment": {"ROUNDHOUSE_LOG_FORMAT": "json"},
        }
    return common | {
        "Environment": {
            "ROUNDHOUSE_STORE": args.models,
            "ROUNDHOUSE_LISTEN": "0.0.0.0:8080",
            "ROUNDHOUSE_INSECURE_NO_AUTH": "true",
            "ROUNDHOUSE_CACHE_DIR": "/tmp/roundhouse",
            "ROUNDHOUSE_LOG_FORMAT": "json",
        },
    }


def create(sagemaker, args):
    """Model, configuration and endpoint, all called NAME; waits until it is in service."""
    if not (args.models.startswith("s3://") and args.models.endswith("/")):
        sys.exit(f"--models is not an s3://bucket/prefix/ with a slash at its end: {args.models}")
    sagemaker.create_model(
        ModelName=args.name, ExecutionRoleArn=args.role, PrimaryContainer=container(args)
    )
    sagemaker.create_endpoint_config(
        EndpointConfigName=args.name,
        ProductionVariants=[
            {
                "VariantName": VARIANT,
                "ModelName": args.name,
                "InstanceType": args.instance_type,
                "InitialInstanceCount": args.instances,
                "InitialVariantWeight": 1.0,
                "VolumeSizeInGB": args.volume_gib,
                "ContainerStartupHealthCheckTimeoutInSeconds": 120,
            }
        ],
    )
    sagemaker.create_endpoint(EndpointName=args.name, EndpointConfigName=args.name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=args.name)
    print(f"{args.name} is in service")


def invoke(runtime, args):
    """One request; its answer to standard output."""
    named = {"TargetModel": args.target}
    if args.attribute:
        named = {"CustomAttributes": f"target-model={args.target}"}
    reply = runtime.invoke_endpoint(
        EndpointName=args.name, ContentType="application/json", Body=args.body, **named
    )
    print(reply["Body"].read().decode())


def delete(sagemaker, args):
    """What `create` made; models in S3 stay."""
    sagemaker.delete_endpoint(EndpointName=args.name)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=args.name)
    sagemaker.delete_endpoint_config(EndpointConfigName=args.name)
    sagemaker.delete_model(ModelName=args.name)
    print(f"{args.name} is deleted")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in ("multi-model", "single"):
        command = commands.add_parser(kind)
        command.add_argument("name")
        command.add_argument("--image", required=True)
        command.add_argument("--role", required=True)
        command.add_argument("--models", required=True)
        command.add_argument("--instance-type", default="ml.m6i.2xlarge")
        command.add_argument("--instances", type=int, default=2)
        command.add_argument("--volume-gib", type=int, default=100)
    command = commands.add_parser("invoke")
    command.add_argument("name")
    command.add_argument("--target", required=True)
    command.add_argument("--body", required=True)
    command.add_argument("--attribute", action="store_true")
    commands.add_parser("delete").add_argument("name")
    return parser.parse_args(arguments)


def main(arguments, client):
    args = parse(arguments)
    if args.command == "invoke":
        invoke(client("sagemaker-runtime"), args)
    elif args.command == "delete":
        delete(client("sagemaker"), args)
    else:
        create(client("sagemaker"), args)


if __name__ == "__main__":
    import boto3

    main(sys.argv[1:], boto3.client)
