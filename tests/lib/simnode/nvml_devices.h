/* What is asked of a device. */

API int nvmlDeviceGetName(handle_t device, char *out, unsigned size) {
    DEVICE(device);
    return put_text(d.mig ? d.mig->name : d.gpu->name, out, size);
}

API int nvmlDeviceGetUUID(handle_t device, char *out, unsigned size) {
    DEVICE(device);
    return put_text(d.mig ? d.mig->uuid : d.gpu->uuid, out, size);
}

API int nvmlDeviceGetIndex(handle_t device, unsigned *out) {
    DEVICE(device);
    return put_number((struct number){SUCCESS, d.mig ? d.mig->index : (unsigned)d.index}, out);
}

API int nvmlDeviceGetSerial(handle_t device, char *out, unsigned size) {
    GPU(device);
    return put_text(d.gpu->serial, out, size);
}

#define NUMBER_OF_GPU(call, field)               \
    API int call(handle_t device, unsigned *out) { \
        GPU(device);                             \
        return put_number(d.gpu->field, out);    \
    }
NUMBER_OF_GPU(nvmlDeviceGetMinorNumber, minor)
NUMBER_OF_GPU(nvmlDeviceGetBrand, brand)
NUMBER_OF_GPU(nvmlDeviceGetArchitecture, architecture)
NUMBER_OF_GPU(nvmlDeviceGetPersistenceMode, persistence_mode)
NUMBER_OF_GPU(nvmlDeviceGetNumaNodeId, numa_node)
NUMBER_OF_GPU(nvmlDeviceGetMaxMigDeviceCount, max_mig_devices)

API int nvmlDeviceGetCudaComputeCapability(handle_t device, unsigned *major, unsigned *minor) {
    GPU(device);
    return put_pair(d.gpu->compute_capability, major, minor);
}

API int nvmlDeviceGetMigMode(handle_t device, unsigned *current, unsigned *pending) {
    GPU(device);
    return put_pair(d.gpu->mig_mode, current, pending);
}

/* PCI. */

static int subsystem(const struct gpu *gpu) { return gpu->pci_subsystem_id.ret ? 0 : (int)gpu->pci_subsystem_id.value; }

#define PUT_PCI(out, pci)                     \
    do {                                      \
        memset(out, 0, sizeof *(out));        \
        (out)->domain = (pci).domain;         \
        (out)->bus = (pci).bus;               \
        (out)->device = (pci).device;         \
        (out)->pci_device_id = (pci).pci_device_id; \
    } while (0)

static void put_legacy(char out[16], const struct pci *pci) {
    snprintf(out, 16, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
}

API int nvmlDeviceGetPciInfo_v3(handle_t device, struct pci_info *out) {
    GPU(device);
    NEED(out);
    TRY(d.gpu->pci.ret);
    PUT_PCI(out, d.gpu->pci);
    out->pci_subsystem_id = (uint32_t)subsystem(d.gpu);
    put_legacy(out->bus_id_legacy, &d.gpu->pci);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", d.gpu->pci.bus_id);
    return SUCCESS;
}

API int nvmlDeviceGetPciInfo_v2(handle_t device, struct pci_info_v2 *out) {
    GPU(device);
    NEED(out);
    TRY(d.gpu->pci.ret);
    PUT_PCI(out, d.gpu->pci);
    out->pci_subsystem_id = (uint32_t)subsystem(d.gpu);
    put_legacy(out->bus_id, &d.gpu->pci);
    return SUCCESS;
}

API int nvmlDeviceGetPciInfo(handle_t device, struct pci_info_v2 *out) { return nvmlDeviceGetPciInfo_v2(device, out); }

API int nvmlDeviceGetPciInfoExt(handle_t device, struct pci_info_ext *out) {
    GPU(device);
    NEED(out);
    if (out->version != VERSION(struct pci_info_ext, 1)) return ARGUMENT_VERSION_MISMATCH;
    TRY(d.gpu->pci.ret);
    PUT_PCI(out, d.gpu->pci);
    out->version = VERSION(struct pci_info_ext, 1);
    out->pci_subsystem_id = (uint32_t)subsystem(d.gpu);
    out->base_class = 3, out->sub_class = 2; /* a display controller, a 3D one */
    snprintf(out->bus_id, sizeof out->bus_id, "%s", d.gpu->pci.bus_id);
    return SUCCESS;
}

/* Memory, in bytes. */

static int memory_of(const struct device *device, struct memory_v2 *out) {
    memset(out, 0, sizeof *out);
    out->version = VERSION(struct memory_v2, 2);
    if (device->mig) {
        TRY(device->mig->attributes.ret);
        out->total = out->free = (uint64_t)device->mig->attributes.memory_mib << 20;
        return SUCCESS;
    }
    TRY(device->gpu->memory.ret);
    out->total = device->gpu->memory.value;
    out->used = device->gpu->memory_used.value;
    out->reserved = device->gpu->memory_reserved.value;
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}

API int nvmlDeviceGetMemoryInfo_v2(handle_t device, struct memory_v2 *out) {
    DEVICE(device);
    NEED(out);
    if (out->version != VERSION(struct memory_v2, 2)) return ARGUMENT_VERSION_MISMATCH;
    return memory_of(&d, out);
}

/* This one counts what is reserved as used. */
API int nvmlDeviceGetMemoryInfo(handle_t device, struct memory *out) {
    struct memory_v2 found;
    DEVICE(device);
    NEED(out);
    TRY(memory_of(&d, &found));
    *out = (struct memory){found.total, found.free, found.used + found.reserved};
    return SUCCESS;
}

/* Affinity: bit masks in unsigned longs, filled up with 0. */

static int put_words(struct words answer, unsigned size, unsigned long *out) {
    NEED(out && size);
    TRY(answer.ret);
    if (answer.count > size) return INSUFFICIENT_SIZE;
    for EACH (i, size) out[i] = i < answer.count ? (unsigned long)answer.value[i] : 0;
    return SUCCESS;
}

API int nvmlDeviceGetCpuAffinity(handle_t device, unsigned size, unsigned long *out) {
    GPU(device);
    return put_words(d.gpu->cpu_affinity, size, out);
}

API int nvmlDeviceGetCpuAffinityWithinScope(handle_t device, unsigned size, unsigned long *out, unsigned scope) {
    GPU(device);
    if (scope > 1) return INVALID_ARGUMENT;
    return put_words(d.gpu->cpu_affinity, size, out);
}

API int nvmlDeviceGetMemoryAffinity(handle_t device, unsigned size, unsigned long *out, unsigned scope) {
    GPU(device);
    if (scope > 1) return INVALID_ARGUMENT;
    return put_words(d.gpu->memory_affinity, size, out);
}

/* Other GPUs. */

static int find_peer(const struct gpu *gpu, handle_t other, const struct peer **out) {
    struct device second;
    TRY(begin("", other, &second));
    TRY(gpu->peers.ret);
    for EACH (i, gpu->peers.count)
        if ((int)gpu->peers.value[i].index == second.index) {
            *out = &gpu->peers.value[i];
            return SUCCESS;
        }
    return NOT_SUPPORTED;
}

API int nvmlDeviceGetTopologyCommonAncestor(handle_t device, handle_t other, unsigned *out) {
    const struct peer *peer;
    GPU(device);
    NEED(out);
    TRY(find_peer(d.gpu, other, &peer));
    return put_number((struct number){peer->has_level ? SUCCESS : NOT_SUPPORTED, peer->level}, out);
}

API int nvmlDeviceGetP2PStatus(handle_t device, handle_t other, unsigned capability, unsigned *out) {
    const struct peer *peer;
    GPU(device);
    NEED(out);
    if (capability >= 5) return INVALID_ARGUMENT;
    TRY(find_peer(d.gpu, other, &peer));
    return put_number((struct number){peer->has_p2p ? SUCCESS : NOT_SUPPORTED, peer->p2p[capability]}, out);
}

static int find_link(const struct gpu *gpu, unsigned link, const struct link **out) {
    TRY(gpu->nvlinks.ret);
    if (link >= gpu->nvlinks.count) return INVALID_ARGUMENT;
    *out = &gpu->nvlinks.value[link];
    return SUCCESS;
}

API int nvmlDeviceGetNvLinkState(handle_t device, unsigned link, unsigned *out) {
    const struct link *found;
    GPU(device);
    TRY(find_link(d.gpu, link, &found));
    return put_number((struct number){SUCCESS, found->active}, out);
}

API int nvmlDeviceGetNvLinkRemotePciInfo_v2(handle_t device, unsigned link, struct pci_info *out) {
    const struct link *found;
    unsigned at[3];
    GPU(device);
    NEED(out);
    TRY(find_link(d.gpu, link, &found));
    if (!found->remote || !parse_bus_id(found->remote, at)) return NOT_SUPPORTED;
    struct pci pci = {SUCCESS, at[0], at[1], at[2], 0, found->remote};
    PUT_PCI(out, pci);
    put_legacy(out->bus_id_legacy, &pci);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", found->remote);
    return SUCCESS;
}
