// A management library that stands in for NVIDIA's: three GPUs, of which the second does not tell how busy it is, and the
// third is somebody else's. With NO_DRIVER in the environment it finds no driver. Sizes and codes are those of nvml.h.
#include <stdint.h>
#include <stdlib.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, DRIVER_NOT_LOADED = 9 };

struct memory { unsigned long long total, free, used; };
struct utilization { unsigned int gpu, memory; };

static int users = 0;

int nvmlInitWithFlags(unsigned int flags) {
    if (getenv("NO_DRIVER")) return DRIVER_NOT_LOADED;
    users++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) { return code == NO_PERMISSION ? "Insufficient Permissions" : "Driver Not Loaded"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 3;
    return users ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (!users) return UNINITIALIZED;
    if (index > 2) return INVALID_ARGUMENT;
    if (index == 2) return NO_PERMISSION;
    *device = (void *)(uintptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    if (!users) return UNINITIALIZED;
    memory->total = (uintptr_t)device * 80000000000ULL;
    memory->used = (uintptr_t)device * 1000000000ULL;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates) {
    if (!users) return UNINITIALIZED;
    if ((uintptr_t)device == 2) return NOT_SUPPORTED;
    rates->gpu = 37;
    rates->memory = 5;
    return SUCCESS;
}
