"""`prepare`: a function that lets TFDS write a set of its own."""

import pytest


@pytest.fixture(scope="session")
def prepare():
    """prepare(root, examples, features, name, config, split, form)."""
    import tensorflow_datasets as tfds

    def prepare(root, examples, features, name="tiny", config=None, split="train", form="array_record"):
        """Lets TFDS write a set `name` of these examples."""
        with tfds.core.registered.skip_registration():

            class Builder(tfds.core.GeneratorBasedBuilder):
                VERSION = tfds.core.Version("1.2.3")
                BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

                def _info(self):
                    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

                def _split_generators(self, _dl_manager):
                    return {split: enumerate(examples)}

                def _generate_examples(self):
                    raise NotImplementedError

        Builder.name = name
        Builder(data_dir=str(root)).download_and_prepare(file_format=form)

    return prepare
