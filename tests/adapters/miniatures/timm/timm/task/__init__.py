from .distillation import LogitDistillationTask, TokenDistillationTask, resume_task_checkpoint

__all__ = ["LogitDistillationTask", "TokenDistillationTask", "resume_task_checkpoint"]
