/*
 * semver.h
 *		Comparison of versions (protocol 6, "Version compare").
 */
#ifndef ABSMARTLY_ENGINE_SEMVER_H
#define ABSMARTLY_ENGINE_SEMVER_H

#include "engine.h"
#include "value.h"

/* VALUE_INCOMPARABLE where a side is empty or has no core. */
extern ValueOrder semver_compare(EngineText left, EngineText right, Work *work);

#endif /* ABSMARTLY_ENGINE_SEMVER_H */
