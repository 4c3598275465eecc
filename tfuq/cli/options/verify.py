"""Arguments of `tfuq verify`."""

HELP = "whether an export is whole, and who signed it"
EPILOG = """\
PATH is a folder or file that `tfuq export` wrote. All its files are compared with the hashes in
its metadata, and none may have come along. Hashes tell damage; who knows them can forge them.
With --key it must be signed by the owner of that key (`tfuq export --sign`). Nothing of the
model is loaded or run.

examples:
  tfuq verify served/
  tfuq verify model.onnx --key public.pem

exit code: 0 fine; 2 it is not whole, or not signed by that key."""


def add_arguments(parser):
    parser.add_argument("path", metavar="PATH", help="a folder or file that `tfuq export` wrote")
    parser.add_argument("--key", metavar="FILE", help="a public key (PEM, Ed25519)")
