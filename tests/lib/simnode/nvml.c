/* A simulated libnvidia-ml.so: it answers from answers.h, which is made from a node's description.
 *
 * Functions have nvml.h's names, arguments and return codes. A handle points into one of the arrays below, so that any
 * other pointer is an invalid argument. Functions that nothing is known about answer NVML_ERROR_NOT_SUPPORTED.
 */

#define _GNU_SOURCE
#include "nvml_types.h"

#include "answers.h"

#include "nvml_faults.h"

#define INIT_FLAG_MASK 3u /* NVML_INIT_FLAG_NO_GPUS, NVML_INIT_FLAG_NO_ATTACH */

static char gpu_handles[GPU_COUNT + 1], mig_handles[MIG_COUNT + 1];
static char gpu_instance_handles[MIG_COUNT + 1], compute_instance_handles[MIG_COUNT + 1];
static int users; /* nvmlInit calls that no nvmlShutdown has met */

struct device {
    const struct gpu *gpu;
    const struct mig *mig; /* NULL for a whole GPU */
    int index;             /* of the GPU */
};

__attribute__((constructor)) static void loaded(void) {
    read_faults();
    meet_faults("load", -1);
}

static int place(const char *handles, int count, const void *handle) {
    uintptr_t at = (uintptr_t)handle, first = (uintptr_t)handles;
    return at >= first && at < first + (unsigned)count ? (int)(at - first) : -1;
}

static int begin_plain(const char *call) {
    return users ? meet_faults(call, -1) : UNINITIALIZED;
}

static int begin(const char *call, handle_t handle, struct device *device) {
    int gpu = place(gpu_handles, GPU_COUNT, handle), mig = place(mig_handles, MIG_COUNT, handle);
    if (!users) return UNINITIALIZED;
    if (gpu < 0 && mig < 0) return INVALID_ARGUMENT;
    device->mig = mig < 0 ? NULL : &MIGS[mig];
    device->index = mig < 0 ? gpu : (int)MIGS[mig].gpu;
    device->gpu = &GPUS[device->index];
    return meet_faults(call, device->index);
}

/* The MIG device behind a handle of a GPU instance or a compute instance: the first that has this instance. */
static int begin_instance(const char *call, const char *handles, handle_t handle, const struct mig **mig) {
    int at = place(handles, MIG_COUNT, handle);
    if (!users) return UNINITIALIZED;
    if (at < 0) return INVALID_ARGUMENT;
    *mig = &MIGS[at];
    return meet_faults(call, (int)MIGS[at].gpu);
}

#define TRY(expression)             \
    do {                            \
        int code_ = (expression);   \
        if (code_) return code_;    \
    } while (0)
#define PLAIN() TRY(begin_plain(__func__))
#define DEVICE(handle)     \
    struct device d;       \
    TRY(begin(__func__, handle, &d))
/* Whole GPUs only. */
#define GPU(handle) \
    DEVICE(handle); \
    if (d.mig) return INVALID_ARGUMENT
#define NEED(pointer) \
    if (!(pointer)) return INVALID_ARGUMENT

static int put_text(struct text answer, char *out, unsigned size) {
    NEED(out);
    TRY(answer.ret);
    if (strlen(answer.value) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, answer.value);
    return SUCCESS;
}

static int put_number(struct number answer, void *out) {
    NEED(out);
    TRY(answer.ret);
    *(uint32_t *)out = (uint32_t)answer.value;
    return SUCCESS;
}

static int put_pair(struct pair answer, uint32_t *first, uint32_t *second) {
    NEED(first && second);
    TRY(answer.ret);
    *first = answer.value[0];
    *second = answer.value[1];
    return SUCCESS;
}

/* Library and system. */

API int nvmlInitWithFlags(unsigned flags) {
    read_faults();
    TRY(meet_faults(__func__, -1));
    if (flags & ~INIT_FLAG_MASK) return INVALID_ARGUMENT;
    if (find_fault("not-loaded")) return DRIVER_NOT_LOADED;
    if (find_fault("mismatch")) return LIB_RM_VERSION_MISMATCH;
    TRY(INIT_RETURN);
    __atomic_add_fetch(&users, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API int nvmlInit(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void) {
    PLAIN();
    __atomic_sub_fetch(&users, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

API const char *nvmlErrorString(int code) {
    static const char *const names[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "GPU access blocked by the operating system",
        "Driver/library version mismatch", "GPU is in use by another client", "Insufficient Memory", "No data",
        "vGPU ECC is not supported", "Insufficient Resources", "Frequency not supported",
        "Argument version mismatch", "Deprecated", "Not ready", "GPU not found", "Invalid state",
        "Reset type not supported",
    };
    return code >= 0 && (unsigned)code < sizeof names / sizeof *names ? names[code] : "Unknown Error";
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    PLAIN();
    const struct fault *fault = find_fault("version");
    return put_text(fault ? (struct text){SUCCESS, fault->call} : DRIVER_VERSION, out, size);
}

API int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    TRY(meet_faults(__func__, -1));
    return put_text(NVML_VERSION, out, size);
}

API int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    TRY(meet_faults(__func__, -1));
    return put_number(CUDA_VERSION, out);
}

API int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

/* Handles. */

API int nvmlDeviceGetCount_v2(unsigned *out) {
    PLAIN();
    return put_number((struct number){SUCCESS, GPU_COUNT}, out);
}

API int nvmlDeviceGetCount(unsigned *out) { return nvmlDeviceGetCount_v2(out); }

static int put_gpu(const char *call, unsigned index, handle_t *out) {
    NEED(out);
    if (index >= GPU_COUNT) return INVALID_ARGUMENT;
    TRY(meet_faults(call, (int)index));
    TRY(GPUS[index].ret);
    *out = &gpu_handles[index];
    return SUCCESS;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle_t *out) {
    if (!users) return UNINITIALIZED;
    return put_gpu(__func__, index, out);
}

API int nvmlDeviceGetHandleByIndex(unsigned index, handle_t *out) { return nvmlDeviceGetHandleByIndex_v2(index, out); }

static int is_text(struct text answer, const char *wanted) {
    return answer.ret == SUCCESS && answer.value && !strcasecmp(answer.value, wanted);
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, handle_t *out) {
    if (!users) return UNINITIALIZED;
    NEED(uuid && out);
    for EACH (i, GPU_COUNT)
        if (!GPUS[i].ret && is_text(GPUS[i].uuid, uuid)) return put_gpu(__func__, i, out);
    for EACH (i, MIG_COUNT)
        if (is_text(MIGS[i].uuid, uuid)) {
            TRY(meet_faults(__func__, (int)MIGS[i].gpu));
            *out = &mig_handles[i];
            return SUCCESS;
        }
    TRY(meet_faults(__func__, -1));
    return NOT_FOUND;
}

/* "GPU-00112233-4455-…" and the sixteen bytes 00 11 22 33 44 55 … are one. */
static int is_binary(struct text answer, const unsigned char *wanted) {
    unsigned done = 0;
    if (answer.ret || !answer.value || strncasecmp(answer.value, "GPU-", 4)) return 0;
    for (const char *at = answer.value + 4; *at && done < 16;) {
        unsigned byte;
        if (*at == '-') at++;
        else if (sscanf(at, "%2x", &byte) == 1 && at[1] && byte == wanted[done]) done++, at += 2;
        else return 0;
    }
    return done == 16;
}

API int nvmlDeviceGetHandleByUUIDV(const struct uuid *uuid, handle_t *out) {
    if (!users) return UNINITIALIZED;
    NEED(uuid && out);
    if (uuid->version != VERSION(struct uuid, 1)) return ARGUMENT_VERSION_MISMATCH;
    if (uuid->type == 1) {
        char text[sizeof uuid->text + 1] = "";
        memcpy(text, uuid->text, sizeof uuid->text);
        return nvmlDeviceGetHandleByUUID(text, out);
    }
    if (uuid->type != 2) return INVALID_ARGUMENT;
    for EACH (i, GPU_COUNT)
        if (!GPUS[i].ret && is_binary(GPUS[i].uuid, uuid->bytes)) return put_gpu(__func__, i, out);
    return NOT_FOUND;
}

API int nvmlDeviceGetHandleBySerial(const char *serial, handle_t *out) {
    if (!users) return UNINITIALIZED;
    NEED(serial && out);
    for EACH (i, GPU_COUNT)
        if (!GPUS[i].ret && is_text(GPUS[i].serial, serial)) return put_gpu(__func__, i, out);
    return NOT_FOUND;
}

/* domain:bus:device.function, or without domain or function; hexadecimal. (For sscanf, "0x" would be a number.) */
static int parse_bus_id(const char *text, unsigned out[3]) {
    unsigned numbers[4] = {0}, count = 0, digits = 0, dots = 0;
    for (;; text++) {
        if (isxdigit((unsigned char)*text) && count < 4) {
            unsigned digit = (unsigned)(isdigit((unsigned char)*text) ? *text - '0' : (*text | 32) - 'a' + 10);
            numbers[count] = numbers[count] << 4 | digit;
            if (++digits > 8) return 0;
            continue;
        }
        if (!digits) return 0;
        digits = 0, count++;
        if (!*text) break;
        if ((*text != ':' && *text != '.') || dots) return 0;
        dots = *text == '.';
    }
    count -= dots;
    if (count != 2 && count != 3) return 0;
    out[0] = count == 3 ? numbers[0] : 0;
    out[1] = numbers[count - 2];
    out[2] = numbers[count - 1];
    return 1;
}

API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, handle_t *out) {
    unsigned at[3];
    if (!users) return UNINITIALIZED;
    NEED(bus_id && out);
    if (!parse_bus_id(bus_id, at)) return INVALID_ARGUMENT;
    for EACH (i, GPU_COUNT) {
        const struct pci *pci = &GPUS[i].pci;
        if (GPUS[i].ret || pci->ret) continue;
        if (pci->domain == at[0] && pci->bus == at[1] && pci->device == at[2]) return put_gpu(__func__, i, out);
    }
    return NOT_FOUND;
}

API int nvmlDeviceGetHandleByPciBusId(const char *bus_id, handle_t *out) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, out);
}

#include "nvml_devices.h"
#include "nvml_mig.h"

/* Everything else. */

static int not_supported(const char *call) {
    TRY(begin_plain(call));
    return NOT_SUPPORTED;
}

#define X(name) \
    API int name(void) { return not_supported(#name); }
#include "nvml_names.h"
