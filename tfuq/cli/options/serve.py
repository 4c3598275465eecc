"""Arguments of `tfuq serve`."""

from tfuq.serving.options import add_options

HELP = "answers over HTTP for a folder that `tfuq export` wrote, with decisions and reasons"
EPILOG = """\
POST /predict takes an image (PNG, JPEG), a .npy file or {"instances": [...]}; GET /ready, /live,
/metrics (Prometheus), /metadata, /openapi.json; with --monitor also POST /labels, GET /monitor.
Needs the extra: pip install "tfuq[serving]".

examples:
  tfuq serve served/ --port 8000
  curl --data-binary @image.png -H "Content-Type: image/png" http://127.0.0.1:8000/predict
  tfuq serve served/ --monitor monitor.json --host 0.0.0.0 --drain 5

SIGTERM ends it once what is under way is answered.

exit code: 0 it was ended; 2 bad input."""


def add_arguments(parser):
    add_options(parser)
