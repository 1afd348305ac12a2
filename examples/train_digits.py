"""Train on handwritten digits: ``python examples/train_digits.py [emulator|verilator]``."""

import sys

import gradmill as gm
from gradmill.datasets import load_task


task = load_task("digits")
with gm.open(sys.argv[1] if len(sys.argv) > 1 else "emulator", config="sim") as device:
    trainer = gm.Trainer(task.model, device, loss=gm.CrossEntropy(),
                         optimizer=gm.SGD(lr=0.1, momentum=0.9),
                         virtual_minibatch=64, sub_minibatch=32)
    history = trainer.fit(task.x, task.y, epochs=3,
                          validation_data=(task.x_test, task.y_test))
    for epoch, (loss, test) in enumerate(zip(history.train_loss, history.validation, strict=True)):
        print(f"epoch {epoch + 1}: loss {loss:.3f}, test accuracy {test['accuracy']:.1%}")
