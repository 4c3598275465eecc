"""Scores digits of chance with a saved model, until it is done or killed.

    python scoring_process.py MODEL FOLDER [KILL]

With KILL, the process kills itself with SIGKILL in the middle of writing that file: when its bytes
are written, and it has not got its name.
"""

import os
import signal
import sys

EXAMPLES = 3000


def main(model, folder, kill=None):
    import keras
    import tensorflow as tf

    import tfuq
    from tfuq._files import writing

    if kill is not None:
        flush, written = writing._flush, []

        def killing(path, flags):
            written.append(path)
            if len(written) == int(kill):
                os.kill(os.getpid(), signal.SIGKILL)
            flush(path, flags)

        writing._flush = killing
    data = tf.data.Dataset.range(EXAMPLES).map(
        lambda n: tf.random.stateless_normal((16,), (0, tf.cast(n, "int32")))
    )
    options = {"num_samples": 20, "shard_size": 20, "verbose": 0}
    print("ready", flush=True)
    tfuq.predictive.score_dataset(keras.models.load_model(model), data.batch(16), folder, **options)
    print("scored", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
