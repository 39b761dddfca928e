/* What nvml.h calls nvmlReturn_t, nvmlPciInfo_t and so on, laid out as there, and the form of the answers. */

#include <stdint.h>

#define API __attribute__((visibility("default")))
#define EACH(i, count) (unsigned i = 0; i < (count); i++)

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

/* A structure's version: its size and its number. */
#define VERSION(type, number) ((uint32_t)(sizeof(type) | (number) << 24))

typedef void *handle_t; /* nvmlDevice_t, nvmlGpuInstance_t, nvmlComputeInstance_t */

struct pci_info { /* nvmlPciInfo_t, of nvmlDeviceGetPciInfo_v3 */
    char bus_id_legacy[16];
    uint32_t domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};
struct pci_info_v2 { /* nvmlPciInfo_v2_t, of nvmlDeviceGetPciInfo and _v2 */
    char bus_id[16];
    uint32_t domain, bus, device, pci_device_id, pci_subsystem_id, reserved[4];
};
struct pci_info_ext { /* nvmlPciInfoExt_v1_t */
    uint32_t version, domain, bus, device, pci_device_id, pci_subsystem_id, base_class, sub_class;
    char bus_id[32];
};
struct memory { /* nvmlMemory_t */
    uint64_t total, free, used;
};
struct memory_v2 { /* nvmlMemory_v2_t */
    uint32_t version;
    uint64_t total, reserved, free, used;
};
struct uuid { /* nvmlUUID_t */
    uint32_t version, type;
    union {
        char text[41];
        unsigned char bytes[16];
    };
};
struct attributes { /* nvmlDeviceAttributes_t */
    uint32_t multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_instance_slices, compute_instance_slices;
    uint64_t memory_mib;
};
struct placement { /* nvmlGpuInstancePlacement_t, nvmlComputeInstancePlacement_t */
    uint32_t start, size;
};
struct gpu_instance_profile_info { /* nvmlGpuInstanceProfileInfo_t */
    uint32_t id, p2p, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    uint64_t memory_mib;
};
struct gpu_instance_profile_info_v2 { /* nvmlGpuInstanceProfileInfo_v2_t */
    uint32_t version, id, p2p, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    uint64_t memory_mib;
    char name[96];
};
struct gpu_instance_info { /* nvmlGpuInstanceInfo_t */
    handle_t device;
    uint32_t id, profile_id;
    struct placement placement;
};
struct compute_instance_profile_info { /* nvmlComputeInstanceProfileInfo_t */
    uint32_t id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
};
struct compute_instance_profile_info_v2 { /* nvmlComputeInstanceProfileInfo_v2_t */
    uint32_t version, id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    char name[96];
};
struct compute_instance_info { /* nvmlComputeInstanceInfo_t */
    handle_t device, gpu_instance;
    uint32_t id, profile_id;
    struct placement placement;
};

/* Answers: `ret` is what the call returns; the rest counts where that is SUCCESS. */
struct text {
    int ret;
    const char *value;
};
struct number {
    int ret;
    uint64_t value;
};
struct pair {
    int ret;
    uint32_t value[2];
};
struct words {
    int ret;
    uint32_t count;
    const uint64_t *value;
};
struct pci {
    int ret;
    uint32_t domain, bus, device, pci_device_id;
    const char *bus_id;
};
struct profile {
    int ret;
    uint32_t kind, id, slices, memory_mib; /* kind: NVML_GPU_INSTANCE_PROFILE_*, NVML_COMPUTE_INSTANCE_PROFILE_* */
};
struct slices {
    int ret;
    uint32_t gpu_instance, compute_instance, memory_mib;
};
struct mig {
    uint32_t gpu, index, gpu_start, compute_start;
    struct text uuid, name;
    struct number gpu_instance_id, compute_instance_id;
    struct profile gpu_instance_profile, compute_instance_profile;
    struct slices attributes;
};
struct link {
    uint32_t active;
    const char *remote; /* bus id, or NULL */
};
struct links {
    int ret;
    uint32_t count;
    const struct link *value;
};
struct peer {
    uint32_t index, has_level, level, has_p2p, p2p[5];
};
struct peers {
    int ret;
    uint32_t count;
    const struct peer *value;
};
struct gpu {
    int ret; /* of whoever asks for its handle */
    struct text uuid, name, serial;
    struct number minor, brand, architecture, memory, memory_used, memory_reserved, max_mig_devices, persistence_mode;
    struct number pci_subsystem_id, numa_node;
    struct pair compute_capability, mig_mode;
    struct pci pci;
    struct words cpu_affinity, memory_affinity;
    struct links nvlinks;
    struct peers peers;
};
