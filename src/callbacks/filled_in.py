"""Notes in each checkpoint how its model was made, so that it can be made again where the training data are not."""

import lightning as L


class FilledIn(L.Callback):
    def __init__(self, filled_in: dict, arguments: dict) -> None:
        """Keep the arguments that instantiate() in src/config.py has found.

        Args:
            filled_in: the model's arguments that the data have given; load_run() uses them
            arguments: all arguments of the model; for load_from_checkpoint(), if the model saves no hyperparameters
        """
        self.filled_in = filled_in
        self.arguments = arguments

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["filled_in"] = self.filled_in
        if "hyper_parameters" not in checkpoint:
            # Lightning makes the objects of which such arguments consist, each described by its class_path.
            how = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
            checkpoint["hyper_parameters"] = self.arguments | how
