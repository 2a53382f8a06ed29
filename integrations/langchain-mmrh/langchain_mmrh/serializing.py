"""Settings that LangChain's ``dumps`` writes down and ``loads`` reads back."""

from __future__ import annotations

from langchain_core.load.serializable import Serializable, SerializedConstructor, SerializedNotImplemented
from mmrh_retriever import SettingsError
from mmrh_retriever.adapters import AdapterSettings


class SerializableSettings(AdapterSettings, Serializable):
    """Adapter settings as LangChain writes them down: as plain data."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may write the class down: yes."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """The settings for ``dumps``; marked as not written down if they could not be read back as the same.

        Nothing is raised for that, because LangChain asks at every call, for its tracers.
        """
        try:
            self.check_portable()
        except SettingsError:
            return self.to_json_not_implemented()
        written = super().to_json()
        if written["type"] == "constructor":
            ours = written["kwargs"].keys() & AdapterSettings.model_fields.keys()
            written["kwargs"] |= self.model_dump(mode="json", include=ours)
        return written
