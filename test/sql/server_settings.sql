-- needs: preload
-- Settings that size shared memory.
SELECT name, vartype, unit, boot_val, min_val
FROM pg_settings WHERE name LIKE 'absmartly.%' AND context = 'postmaster' ORDER BY name COLLATE "C";
