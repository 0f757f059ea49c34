"""trl, or a stand-in: newer ones lack a name that is imported."""

from modelswarms_fast.compat.run.places import package

package(__name__, names=("DataCollatorForCompletionOnlyLM",))
