"""`openuni tasks`: the tasks of a training run, and what each of them takes."""

from typing import TYPE_CHECKING, Any

from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.training.run import Run
    from openuni.training.tasks import Task


def task_records(run: "Run") -> list[dict[str, Any]]:
    """Per task: its names, conditions and targets, and whether it takes prompts and which guidance."""
    return [
        {
            "task": str(task),
            "names": list(task.names[1:]),
            "conditions": list(task.conditions),
            "targets": [*task.targets, *(["text"] if task.generates_text else [])],
            "prompt": bool(run.caption_streams(task)),
            "guidance": _is_guided(run, task, guidance_scale=2.0),
            "negative_prompt": _is_guided(run, task, guidance_scale=2.0, negative_prompt="blurred"),
            "condition_guidance": bool(task.conditions)
            and any(_is_guided(run, task, guidance_scale=s, condition_guidance_scale=2.0) for s in (1.0, 2.0)),
        }
        for task in run.tasks
    ]


def _is_guided(run: "Run", task: "Task", **options: Any) -> bool:
    """Whether training covered this guidance."""
    from openuni.training.guidance import check_guidance
    from openuni.training.sampler import SamplingOptions

    try:
        check_guidance(run.architecture, run.recipe, run.tasks, task, SamplingOptions(**options))
    except OpenUniError:
        return False
    return True


def format_tasks(records: list[dict[str, Any]]) -> str:
    """A line per task: the arrow form, the other names, and what it takes."""
    lines = [("task", "other names", "takes")]
    for record in records:
        takes = [f"--given {name}=VIDEO" for name in record["conditions"]]
        flags = {"prompt": "--prompt", "guidance": "--guidance-scale", "negative_prompt": "--negative-prompt"}
        flags["condition_guidance"] = "--condition-guidance-scale"
        takes += [flag for key, flag in flags.items() if record[key]]
        lines.append((record["task"], ", ".join(record["names"]), " ".join(takes)))
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    return "\n".join(f"{task:{widths[0]}}  {names:{widths[1]}}  {takes}".rstrip() for task, names, takes in lines)
