/*
 * work.c
 *		Work whose length depends on the data.
 */
#include "work.h"

/*
 * What is asked for is granted, however much it is, unless the host objects:
 * the pieces that callers work in bound it.
 */
bool
work_ask(Work *work, uint64_t cost)
{
	if (!work->stopped && work->interrupted != NULL &&
		work->interrupted(work->context))
		work->stopped = true;
	if (work->stopped)
	{
		work->granted -= work->left;
		work->left = 0;
		return false;
	}
	work->granted += cost + WORK_SLICE - work->left;
	work->left = WORK_SLICE;
	return true;
}
